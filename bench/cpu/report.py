"""The sections' results as tables: on the terminal, and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from bench import markdown
from bench.cpu import SECTIONS, goals
from bench.cpu.cache import PRECOMPILED
from bench.cpu.goals import Entries, Goal, cases, ratio, side
from bench.cpu.timing import Ratio, digits
from bench.store import Entry

HEADER = """# Speed on the CPU

`python -m bench cpu` writes this file; `cpu.json` beside it has every sample. Sides take turns within a run; a ratio
is taken within each round, and is given as the median over the rounds with its quartiles.

- *ours*: `torch.compile(backend="helion_tpu")`. *interpret*: the same with `cpu_kernels="interpret"`.
- *compute*: our program under `jax.jit`, on JAX arrays: *ours* without the call from torch and the copy of its results.
- *plain*: the same computation in `jax.numpy` under `jax.jit`, on JAX arrays.
- *Inductor*: `backend="inductor"` of the PyTorch that the kernel replaces, in C++; *Inductor, Pallas*: the same with
  `cpu_backend = "pallas"`, which runs in Pallas's interpreter and traces anew in every call.
- *Helion*: Helion's own launcher of the kernel, in Pallas's interpreter.
- *precompiled*: with torch's own precompilation (`TORCH_CACHING_PRECOMPILE=1`), which keeps what Dynamo found.
"""

TITLES = {
    "kernels": "Kernels: milliseconds a call",
    "sizes": "Kernels at smaller sizes: milliseconds a call, and Helion's launcher",
    "dispatch": "Dispatch: microseconds a call",
    "decode": "Decode steps, caches updated at one position: milliseconds a step",
    "models": "Models, forward in inference mode: milliseconds a call",
    "training": "Models, a training step, forward and backward: milliseconds a step",
    "bfloat16": "Models in bfloat16, forward in inference mode: milliseconds a call",
    "cache": "Cache: seconds to the first result of a process",
    "layers": "Compile time by layers",
}
NAMES = {
    "plain": "plain jax.numpy",
    "plain_blocked": "plain, blocked",
    "inductor": "Inductor",
    "inductor_pallas": "Inductor, Pallas",
    "helion": "Helion",
}


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def time_of(entry: Entry, name: str, unit: float) -> str:
    """A side's median in a unit (1e3 for milliseconds); "failed", or a dash if it was not measured."""
    if name not in entry.get("sides", {}):
        return markdown.NONE
    found = side(entry, name)
    return "failed" if found is None else amount(found["median"] * unit)


def amount(value: float) -> str:
    """A number with three digits that matter, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def over(found: Ratio | None) -> str:
    return markdown.NONE if found is None else str(found)


def _errors(name: str, entry: Entry) -> list[str]:
    whole = [f"{name}: {entry['error']}"] if "error" in entry else []
    parts = [(which, one["error"]) for which, one in entry.get("sides", {}).items() if "error" in one]
    return whole + [f"{name}, {NAMES.get(which, which)}: {text}" for which, text in parts]


def _notes(found: dict[str, Entry]) -> list[str]:
    said = [f"{name}: {entry['note']}" for name, entry in found.items() if entry.get("note")]
    return said + [line for name, entry in found.items() for line in _errors(name, entry)]


def compared(
    title: str, found: dict[str, Entry], names: Sequence[str], ratios: Sequence[tuple[str, str]], unit: float
) -> Sheet:
    """Medians of sides, and ratios (above, below) of some."""
    shown = [name for name in names if any(name in entry.get("sides", {}) for entry in found.values())]
    pairs = [pair for pair in ratios if all(name in shown for name in pair)]
    headers = ["case", *(NAMES.get(name, name) for name in shown)]
    headers += [f"{NAMES.get(above, above)} / {NAMES.get(below, below)}" for above, below in pairs]
    rows = [
        [name, *(time_of(entry, one, unit) for one in shown), *(over(ratio(entry, *pair)) for pair in pairs)]
        for name, entry in found.items()
    ]
    return Sheet(title, headers, rows, _notes(found))


def sheets(entries: Entries) -> Iterator[Sheet]:
    """All tables that there are results for."""
    kernels = cases(entries, "kernels")
    if kernels:
        names = ("ours", "compute", "plain", "plain_blocked", "eager", "inductor", "inductor_pallas", "interpret")
        pairs = [("ours", "plain"), ("compute", "plain"), ("compute", "plain_blocked"), ("ours", "eager")]
        pairs += [("ours", "inductor")]
        pairs += [("interpret", "ours"), ("inductor_pallas", "ours")]
        noted = {
            name: {**entry, "note": f"{entry.get('note')}, {entry.get('blocks')} blocks"}
            for name, entry in kernels.items()
        }
        yield compared(TITLES["kernels"], noted, names, pairs, 1e3)
    smaller = {
        f"{name}, {size}": found for name, entry in kernels.items() for size, found in entry.get("sizes", {}).items()
    }
    if smaller:
        names = ("ours", "compute", "plain", "plain_blocked", "helion")
        pairs = [("compute", "plain"), ("compute", "plain_blocked"), ("ours", "compute"), ("helion", "ours")]
        yield compared(TITLES["sizes"], smaller, names, pairs, 1e3)
    dispatch = cases(entries, "dispatch")
    if dispatch:
        names = ("ours", "bare", "jax", "eager", "inductor")
        pairs = [("ours", "bare"), ("ours", "eager"), ("ours", "inductor")]
        yield compared(TITLES["dispatch"], dispatch, names, pairs, 1e6)
    decode = cases(entries, "decode")
    if decode:
        pairs = [("ours", "eager"), ("ours", "inductor")]
        yield compared(TITLES["decode"], decode, ("ours", "eager", "inductor"), pairs, 1e3)
    for section in ("models", "training", "bfloat16"):
        if models := cases(entries, section):
            pairs = [("eager", "ours"), ("inductor", "ours")]
            yield compared(TITLES[section], models, ("ours", "eager", "inductor"), pairs, 1e3)
    cache = cases(entries, "cache")
    if cache:
        for how in ("", PRECOMPILED):
            pairs = [
                (f"{who}{how} warm{what}", f"{who}{how} cold{what}")
                for who in ("ours", "inductor")
                for what in ("", ", all")
            ]
            names = [name for warm, cold in pairs for name in (cold, warm)]
            found = {case: entry for case, entry in cache.items() if side(entry, f"ours{how} warm")}
            if found:
                yield compared(TITLES["cache"] + how, found, names, pairs, 1.0)
    for name, entry in cases(entries, "layers").items():
        yield layer_sheet(name, entry)


def layer_sheet(name: str, entry: Entry) -> Sheet:
    """Seconds by number of layers, and the line through them."""
    sizes = sorted((key for key in entry.get("sides", {}) if key.isdecimal()), key=int)
    rows = [
        [
            size, time_of(entry, size, 1), time_of(entry, f"{size}, stages", 1),
            amount(entry["sides"][size]["median"] / int(size) * 1e3),
        ]
        for size in sizes
    ]  # fmt: skip
    found = goals.fit(entry)
    line = [f"fit: {found[0]:.2f} s + {found[1] * 1e3:.1f} ms a layer, R² = {found[2]:.4f}"] if found else []
    headers = ["layers", "total, s", "our stages, s", "ms a layer"]
    return Sheet(f"{TITLES['layers']}: {name}", headers, rows, [*_notes({name: entry}), *line])


def goal_sheet(found: Sequence[Goal]) -> Sheet:
    """What was to be reached, and what was."""
    rows = [
        [
            goal.what,
            markdown.NONE if goal.found is None else f"{goal.found:.4f}" if goal.limit == goals.LINEAR_LIMIT
            else digits(goal.found),
            markdown.NONE if goal.spread is None else f"{digits(goal.spread[0])} to {digits(goal.spread[1])}",
            f"{'<=' if goal.at_most else '>='} {goal.limit:g}",
            {None: "not measured", True: "met", False: "missed"}[goal.met],
        ]
        for goal in found
    ]  # fmt: skip
    return Sheet("Goals", ["ratio", "found", "quartiles", "goal", "verdict"], rows)


def all_goals(entries: Entries) -> list[Goal]:
    """The goals of the sections that have results."""
    return [goal for name in SECTIONS if cases(entries, name) for goal in goals.GOALS[name](entries)]


def about(entries: Entries) -> list[str]:
    """Machine and versions behind the results; several lines where results are from several runs."""
    found: set[str] = set()
    for key, entry in entries.items():
        if key.startswith("profiles/"):
            continue
        versions = (f"{name} {version}" for name, version in entry["versions"].items() if version)
        found.add(
            ", ".join(
                [
                    f"{entry['cores']} cores",
                    f"torch with {entry['threads']} threads",
                    f"{entry['rounds']} rounds",
                    *versions,
                ]
            )
        )
    return sorted(found)


def document(entries: Entries) -> str:
    """Everything as Markdown."""
    parts = [HEADER, "".join(f"{line}.\n" for line in about(entries))]
    for sheet in (goal_sheet(all_goals(entries)), *sheets(entries)):
        lines = "".join(f"- {note}\n" for note in sheet.notes)
        parts.append(f"## {sheet.title}\n\n{markdown.table(sheet.headers, sheet.rows)}" + (lines and f"\n{lines}"))
    return "\n".join(parts)


def show(entries: Entries, console: Console) -> None:
    """Everything on a terminal."""
    for sheet in (*sheets(entries), goal_sheet(all_goals(entries))):
        table = Table(title=sheet.title, caption="\n".join(sheet.notes) or None, caption_justify="left")
        for header in sheet.headers:
            table.add_column(header, justify="left" if header == sheet.headers[0] else "right")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
