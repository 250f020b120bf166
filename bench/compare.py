"""``python -m bench compare A.json B.json``: is the second set of results worse?"""

from __future__ import annotations

import dataclasses
import pathlib

from bench import markdown, store

METRICS = ("hbm_bytes", "peak_bytes", "programs", "device_operations")
"""What must not grow."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A metric of a task that differs by more than the tolerance; ``after`` is None where the task now fails."""

    key: str
    metric: str
    before: int | None
    after: int | None

    @property
    def is_worse(self) -> bool:
        return self.before is not None and (self.after is None or self.after > self.before)

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        share = markdown.NONE
        if self.before and self.after is not None:
            share = f"{100 * (self.after / self.before - 1):+.1f}%"
        verdict = "worse" if self.is_worse else "better"
        return self.key, self.metric, markdown.whole(self.before), markdown.whole(self.after), share, verdict


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All changes, in the order of the keys; how many tasks were compared; keys that only one side has."""

    changes: tuple[Change, ...]
    compared: int
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def worse(self) -> int:
        return sum(change.is_worse for change in self.changes)

    def text(self) -> str:
        """The table and what it comes to."""
        lines = []
        if self.changes:
            headers = ("task", "metric", "before", "after", "change", "verdict")
            lines.append(markdown.table(headers, [change.cells() for change in self.changes]))
        lines += [f"only before: {key}\n" for key in self.only_before]
        lines += [f"only after: {key}\n" for key in self.only_after]
        better = len(self.changes) - self.worse
        lines.append(f"{self.compared} tasks compared: {self.worse} figures worse, {better} better\n")
        return "".join(lines)


def compare(before: dict[str, store.Entry], after: dict[str, store.Entry], tolerance: float) -> Comparison:
    """Compares the tasks that both sides have.

    Args:
        tolerance: the share by which a metric may change without being listed.
    """
    both = sorted(before.keys() & after.keys())
    changes: list[Change] = []
    for key in both:
        old, new = before[key], after[key]
        if "error" in old or "error" in new:
            if "error" not in old:
                changes.append(Change(key, "error", 0, None))
            elif "error" not in new:
                changes.append(Change(key, "error", None, 0))
            continue
        for metric in METRICS:
            if abs(new[metric] - old[metric]) > tolerance * old[metric]:
                changes.append(Change(key, metric, old[metric], new[metric]))
    return Comparison(
        tuple(changes),
        len(both),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(after.keys() - before.keys())),
    )


def main(before: pathlib.Path, after: pathlib.Path, tolerance: float) -> int:
    """Prints a comparison; the exit code: 1 if anything is worse."""
    found = compare(store.read(before), store.read(after), tolerance)
    print(found.text(), end="")
    return 1 if found.worse else 0
