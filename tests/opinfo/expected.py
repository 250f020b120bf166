"""The expected state of every entry: the reader of ``expected.toml``, which lists those that do not pass."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tomllib

from tests.opinfo.tasks import COLUMNS, Result

PATH = pathlib.Path(__file__).with_name("expected.toml")
REASONS = (
    "data_dependent",
    "random",
    "unsupported_by_jax",
    "outside_memory",
    "raises_like_eager",
    "numerics",
    "fullgraph",
)
STATES = ("fails", "uncounted")

Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class State:
    """What is expected of an entry that does not pass; see the head of ``expected.toml``."""

    state: str
    reason: str
    code: str = ""
    explanation: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES or self.reason not in REASONS:
            raise ValueError(f"expected a state of {STATES} and a reason of {REASONS}, got {self}")
        if self.state == "fails" and not self.code:
            raise ValueError(f"expected a code, got {self}")
        if self.reason == "numerics" and not self.explanation:
            raise ValueError(f"expected an explanation, got {self}")


@functools.cache
def states() -> dict[Key, State]:
    """States by database, entry and column.

    Raises:
        KeyError: an entry is listed twice.
    """
    found: dict[Key, State] = {}
    for group in tomllib.loads(PATH.read_text())["state"]:
        database, columns, entries = (group.pop(name) for name in ("database", "columns", "entries"))
        state = State(**group)
        columns = COLUMNS if columns == "*" else columns
        for key in ((database, entry, column) for entry in entries for column in columns):
            if key in found:
                raise KeyError(f"expected one state of {key}, got {found[key]} and {state}")
            found[key] = state
    return found


def complaint(result: Result) -> str:
    """What is wrong with a result, or "" if it is as expected."""
    expected = states().get((result.database, result.name, result.column))
    if not result.counted:
        return _uncounted(result, expected)
    got = f"fails with {result.code} on samples {list(result.failing)}: {result.message}" if result.code else "passes"
    if expected is None:
        return f"expected a pass, but it {got}" if result.code else ""
    if expected.state == "uncounted":
        return f"expected aot_eager to fail ({expected.reason}), but it passes; helion_tpu {got}"
    return "" if result.code == expected.code else f"expected {expected.code} ({expected.reason}), but it {got}"


def _uncounted(result: Result, expected: State | None) -> str:
    """The complaint about an entry that aot_eager does not pass."""
    own = sorted({*result.failing} - {*result.reference_failing})
    if result.samples == 0:
        return "" if result.code == "" else f"{result.code}: {result.message}"
    if expected is None or expected.state != "uncounted":
        return f"expected aot_eager to pass, but it fails: {result.reference}"
    if bool(own) == bool(expected.code):
        return "" if not own or result.code == expected.code else f"expected {expected.code}, got {result.code}"
    return f"of the samples that aot_eager passes, helion_tpu fails {own} with {result.code}: {result.message}"
