"""``python -m bench whole_models``: bytes, memory and copies of whole models, ours and hand-written, for each chip."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from bench import markdown
from bench.programs import refused
from bench.store import Store, versions
from bench.whole_models.case import Built, Case
from bench.whole_models.cases import CASES
from bench.whole_models.programs import Side, ours, twin

RESULTS = pathlib.Path(__file__).parent.parent / "results"
MIB = 1 << 20


def least_bytes(case: Case, built: Built) -> int:
    """Bytes that nothing can do without: weights that are read, inputs and caches once; of a step, weights twice and
    their gradients. What lies between layers is not counted."""
    weights = built.weights()
    read = {name: built.read.get(name, value.nbytes) for name, value in weights.items()}
    inputs = sum(value.nbytes for value in (*built.inputs, *built.caches))
    if not case.trains:
        return sum(read.values()) + inputs
    trained = built.trained()
    return sum(read.values()) + sum(read[name] for name in trained) + sum(weights[n].nbytes for n in trained) + inputs


def figures(side: Side) -> dict[str, Any]:
    return {
        "hbm_bytes": side.hbm_bytes,
        "peak_bytes": side.peak_bytes,
        "copied_bytes": side.copied_bytes,
        "seconds": round(side.seconds, 1),
        "programs": [program.hbm_bytes for program in side.programs],
    }


def operations(side: Side, count: int) -> str:
    """The operations of a side that move most bytes, one a line: MiB read and written, program, opcode, origin."""
    lines: list[str] = []
    for at, o in side.largest(count):
        moved = f"{o.hbm_bytes_read / MIB:9.1f} {o.hbm_bytes_written / MIB:9.1f}"
        lines.append(f"{moved}  {at} {o.opcode:<28} {o.name:<36} {o.op_name[-90:]}")
    return "\n".join(lines)


def measured(
    case: Case, target: str, kept: Mapping[str, Any] | None = None, seen: Callable[[str, Side], None] = lambda *_: None
) -> dict[str, Any]:
    """Both sides' figures; a side that was measured before may be kept. ``seen`` gets each that was compiled."""
    built = case.build(False)
    entry: dict[str, Any] = {"note": case.note, "least_bytes": least_bytes(case, built), "limit": case.limit}
    for name, compiled in (("ours", ours), ("hand", twin)):
        if kept and "error" not in kept.get(name, {"error": ""}):
            entry[name] = kept[name]
            continue
        try:
            side = compiled(case, built, target)
            seen(name, side)
            entry[name] = figures(side)
        except Exception as error:  # what is refused stays in the table, by its code or its type's name
            told = refused(getattr(error, "inner_exception", error))
            first, *_ = told["text"].strip().split("\n")
            entry[name] = {"error": f"{told['code']}: {first}"}
    return entry


def table(entries: Mapping[str, Any], target: str) -> str:
    """The figures for one chip, in Markdown."""
    rows: list[list[str]] = []
    for key, entry in entries.items():
        if key.endswith(f"/{target}"):
            rows.append([entry["note"], *_cells(entry)])
    head = ["case", "ours MiB", "hand MiB", "ratio", "least MiB", "copies", "peak", "peak ratio"]
    return markdown.table(head, rows)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    own, hand = entry["ours"], entry["hand"]
    failed = [side["error"].split(":")[0] if "error" in side else "" for side in (own, hand)]
    if any(failed):
        return [failed[0] or mib(own["hbm_bytes"]), failed[1] or mib(hand["hbm_bytes"]), *[""] * 5]
    ratio, peak = own["hbm_bytes"] / hand["hbm_bytes"], own["peak_bytes"] / hand["peak_bytes"]
    over = "" if ratio <= entry["limit"] + 0.005 else f" (goal {entry['limit']:.2f})"
    return [
        mib(own["hbm_bytes"]),
        mib(hand["hbm_bytes"]),
        f"{ratio:.2f}{over}",
        mib(entry["least_bytes"]),
        f"{mib(own['copied_bytes'])} / {mib(hand['copied_bytes'])}",
        f"{mib(own['peak_bytes'])} / {mib(hand['peak_bytes'])}",
        f"{peak:.2f}",
    ]


def mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.0f}"


def document(entries: Mapping[str, Any]) -> str:
    targets = list(dict.fromkeys(key.split("/")[1] for key in entries))
    parts = [
        "# Whole models, ours and hand-written\n\n",
        "Compiled by libtpu; nothing was measured on a TPU. HBM bytes by operands and results, both sides by the same "
        "parser; bfloat16. Hand: JAX as an engineer writes it, in `bench/whole_models`. Least: weights, inputs and "
        "caches once, of a step weights twice and their gradients. Copies: MiB that operations move which only lay "
        "arrays out again. A step is two programs on both sides; its peak is that of the larger.\n",
    ]
    for target in targets:
        parts.append(f"\n## {target}\n\n{table(entries, target)}")
    return "".join(parts)


def main(
    names: Sequence[str], targets: Sequence[str], folder: pathlib.Path | None, keep_twins: bool, shown: int = 0
) -> int:
    """Measures cases for chips, keeps each as soon as it is there, and writes the tables; 1 if a goal is missed.
    Prints the ``shown`` largest operations of each side."""
    folder, console = folder or RESULTS, Console()
    store = Store(folder / "whole_models.json", slashes=1)
    missed = False

    def seen(side_name: str, side: Side) -> None:
        if shown:
            console.print(f"{side_name}:\n{operations(side, shown)}", markup=False, soft_wrap=True)

    for name in names or CASES:
        for target in targets:
            kept = store.entries.get(f"{name}/{target}")
            known = {"hand": kept["hand"]} if keep_twins and kept and kept["versions"] == versions() else None
            entry = measured(CASES[name], target, known, seen)
            store.put(f"{name}/{target}", {**entry, "versions": versions()})
            cells = _cells(entry)
            missed |= "goal" in cells[2] or not cells[2]
            console.print(f"{name} {target}: " + " | ".join(cells), markup=False)
    every = dict.fromkeys((*targets, *(key.split("/")[1] for key in store.entries)))
    order = {f"{name}/{target}": store.entries.get(f"{name}/{target}") for target in every for name in CASES}
    (folder / "whole_models.md").write_text(document({key: entry for key, entry in order.items() if entry}))
    return int(missed)
