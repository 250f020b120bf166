"""What the figures are held against: ratios of two sides' times, and a fit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.compile_time import linear_fit
from bench.cpu.cache import PRECOMPILED
from bench.cpu.first_result import SMALL
from bench.cpu.timing import Ratio
from bench.model_compile_time import geometric_mean
from bench.store import Entry

Entries = Mapping[str, Entry]

PLAIN_LIMIT = 1.2
DISPATCHED = "8x128"  # the size at which a call from torch takes longer than what it computes
INTERPRET_LIMIT = 30.0
DISPATCH_LIMITS = {"one_op": 1.25, "mlp": 1.25, "linear_40": 1.2}
DECODE_LIMIT = 1.1
EAGER_MEAN, INDUCTOR_MEAN, INDUCTOR_MEAN_TRAINING, INDUCTOR_EACH = 1.0, 1.0, 0.9, 0.8
CACHE_LIMIT = 0.35
FIRST_LIMIT = 1.0  # seconds
LINEAR_LIMIT = 0.99


@dataclasses.dataclass(frozen=True)
class Goal:
    """One goal, and what was found.

    Attributes:
        what: in words.
        found: the figure; None where there are no samples to tell.
        limit: what it is held against.
        at_most: whether less is better.
        spread: the quartiles of the figure, where it has them.
    """

    what: str
    found: float | None
    limit: float
    at_most: bool
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """None if there is nothing to tell by."""
        if self.found is None:
            return None
        return self.found <= self.limit if self.at_most else self.found >= self.limit


def side(entry: Entry, name: str) -> Mapping[str, Any] | None:
    """A side's figures; None if it was not measured or failed."""
    found = entry.get("sides", {}).get(name)
    return None if found is None or "error" in found else found


def ratio(entry: Entry, above: str, below: str) -> Ratio | None:
    return Ratio.of(side(entry, above), side(entry, below))


def cases(entries: Entries, section: str) -> dict[str, Entry]:
    """The entries of a section by case, in the order they were kept in."""
    return {key.split("/")[1]: entry for key, entry in entries.items() if key.startswith(f"{section}/")}


def _goal(what: str, found: Ratio | None, limit: float, at_most: bool = True) -> Goal:
    spread = None if found is None else (found.low, found.high)
    return Goal(what, None if found is None else found.median, limit, at_most, spread)


def kernel_goals(entries: Entries) -> list[Goal]:
    goals: list[Goal] = []
    for name, entry in cases(entries, "kernels").items():
        goals += _plain_goals(name, entry)
        for size, smaller in entry.get("sizes", {}).items():
            goals += _plain_goals(f"{name}, {size}", smaller)
        if entry.get("blocks", 64) >= 64:
            goals.append(
                _goal(f"{name}: interpret / ours", ratio(entry, "interpret", "ours"), INTERPRET_LIMIT, at_most=False)
            )
    return goals


def _plain_goals(what: str, entry: Mapping[str, Any]) -> list[Goal]:
    """What a program computes against each plain form, and its whole call, where that is no matter of dispatch."""
    measured = entry.get("sides", {})
    forms = [form for form in measured if form.startswith("plain")] or ["plain"]
    ours = [one for one in ("ours", "compute") if one in measured and (one != "ours" or DISPATCHED not in what)]
    return [_goal(f"{what}: {one} / {form}", ratio(entry, one, form), PLAIN_LIMIT) for one in ours for form in forms]


def dispatch_goals(entries: Entries) -> list[Goal]:
    return [
        _goal(f"{name}: ours / inductor", ratio(entry, "ours", "inductor"), DISPATCH_LIMITS[name])
        for name, entry in cases(entries, "dispatch").items()
        if name in DISPATCH_LIMITS
    ]


def decode_goals(entries: Entries) -> list[Goal]:
    """Against the better of eager and Inductor."""
    found: list[Goal] = []
    for name, entry in cases(entries, "decode").items():
        known = [(one["median"], which) for which in ("eager", "inductor") if (one := side(entry, which)) is not None]
        if known:
            best = min(known)[1]
            found.append(_goal(f"decode, {name}: ours / {best}", ratio(entry, "ours", best), DECODE_LIMIT))
    return found


def speeds(entries: Entries, section: str, than: str) -> dict[str, float]:
    """How many times faster ours is than another side, by model; models without either side are left out."""
    found = {name: ratio(entry, than, "ours") for name, entry in cases(entries, section).items()}
    return {name: one.median for name, one in found.items() if one is not None}


def model_goals(entries: Entries, section: str, inductor_mean: float = INDUCTOR_MEAN) -> list[Goal]:
    eager, inductor = speeds(entries, section, "eager"), speeds(entries, section, "inductor")
    means = [geometric_mean(list(found.values())) if found else None for found in (eager, inductor)]
    slowest = min(inductor, key=lambda name: inductor[name], default="no model")
    what = {"models": "speed", "training": "speed of training", "bfloat16": "speed in bfloat16"}[section]
    return [
        Goal(f"{what} over eager's, geometric mean of {len(eager)} models", means[0], EAGER_MEAN, at_most=False),
        Goal(
            f"{what} over Inductor's, geometric mean of {len(inductor)} models", means[1], inductor_mean, at_most=False
        ),
        Goal(f"{what} over Inductor's, the least: {slowest}", inductor.get(slowest), INDUCTOR_EACH, at_most=False),
    ]


def cache_goals(entries: Entries) -> list[Goal]:
    found = cases(entries, "cache")
    small = side(found.get(SMALL, {}), "ours cold")
    first = f"{SMALL}: seconds to the first result, after imports"
    goals = [] if small is None else [Goal(first, small["median"], FIRST_LIMIT, at_most=True)]
    return goals + [
        _goal(
            f"{name}: warm / cold, after imports{how}", ratio(entry, f"ours{how} warm", f"ours{how} cold"), CACHE_LIMIT
        )
        for name, entry in found.items()
        for how in ("", PRECOMPILED)
        if name != SMALL and side(entry, f"ours{how} warm")
    ]


def fit(entry: Entry) -> tuple[float, float, float] | None:
    """(offset, seconds a layer, coefficient of determination) of the medians; None with fewer than three sizes."""
    sizes = sorted(int(name) for name in entry.get("sides", {}) if name.isdecimal())
    if len(sizes) < 3:
        return None
    return linear_fit(tuple(sizes), [entry["sides"][str(size)]["median"] for size in sizes])


def layer_goals(entries: Entries) -> list[Goal]:
    return [
        Goal(f"{name}: R² of a line through the medians", found[2] if found else None, LINEAR_LIMIT, at_most=False)
        for name, entry in cases(entries, "layers").items()
        for found in [fit(entry)]
    ]


GOALS: Mapping[str, Callable[[Entries], Sequence[Goal]]] = {
    "kernels": kernel_goals,
    "dispatch": dispatch_goals,
    "decode": decode_goals,
    "models": functools.partial(model_goals, section="models"),
    "training": functools.partial(model_goals, section="training", inductor_mean=INDUCTOR_MEAN_TRAINING),
    "bfloat16": functools.partial(model_goals, section="bfloat16"),
    "cache": cache_goals,
    "layers": layer_goals,
    "profiles": lambda entries: [],
}
"""By section."""
