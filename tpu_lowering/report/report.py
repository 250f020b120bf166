"""``Report``: what the passes did to a model's buffers, what they left, and why."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import rich.markup
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from tpu_lowering import errors
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.report.boxes import ProgramGraphs
from tpu_lowering.report.findings import CompilerView, Draw
from tpu_lowering.report.page.document import Page, document, fragment
from tpu_lowering.report.sizes import names_text, size_text

LINES = 3
"""Source lines that are printed of what is saved for a backward: the largest."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What ``explain`` found.

    Attributes:
        programs_before: programs (device launches) that torch_tpu's split rule makes of the model as it
            is written: a kernel call that writes in place is cut off before and after.
        programs_after: XLA programs that were compiled: one for each captured graph.
        kernel_calls_before: kernel calls of the model as it is written.
        kernel_calls: kernel calls in all programs, generated kernels with them.
        allocations_removed: ``torch.empty*`` calls that cost nothing any more.
        fills_removed: ``torch.zeros`` and the like that are provably overwritten and gone.
        bytes_saved: HBM bytes that are no longer moved, by the operands: each removed allocation or fill
            was written once, and each operand that became a fresh buffer was fetched once. Counted, not
            measured.
        bytes_left: HBM bytes that are still moved for buffers, counted in the same way.
        removed: the buffers behind ``allocations_removed`` and ``fills_removed``.
        allocations_kept: allocations and fills that stay, each with its reason.
        aliases_kept: other buffers that a kernel writes in place: mutated inputs, results of kernels.
        notes: remarks, such as a kernel that loads undefined memory.
        programs: names of the programs, in the order they were compiled.
        draws: where random numbers are drawn.
        seconds: time spent in our stages, by stage; "compile" is XLA's.
        compile_seconds: time spent in compiling, by whom: Dynamo, AOTAutograd, tpu_lowering, XLA.
        graph_breaks: where Dynamo left the function, and its reasons.
        in_eager: operators that run in eager torch, with ``options={"fallback": "eager"}``.
        refused: what could not be compiled for the target that was asked for.
        graphs: each program's graph as boxes, as written and as compiled; for the target, if one was asked for.
        chip: the TPU compiler's view, if a target was asked for.
        sizes_kept: dynamic sizes that ``buckets`` leaves as they are, each with the operator and the reason.
        recompiles: why a graph or a program was compiled again: the sizes that changed, the guard that failed.
        fused: results of operators that became a kernel: for the chip that was asked for, or for the CPU with
            ``options={"fuse": "always"}``.
        unfused: those that could have, and why they did not.
        launched: Helion kernels that are launched otherwise than their config says, for the chip that was asked for.
        saved: what forwards compute and keep for their backwards, in memory of its own, the largest first.
    """

    programs_before: int
    programs_after: int
    kernel_calls: int
    allocations_removed: int
    fills_removed: int
    bytes_saved: int
    removed: tuple[Remark, ...]
    allocations_kept: tuple[Remark, ...]
    aliases_kept: tuple[Remark, ...]
    notes: tuple[Remark, ...]
    programs: tuple[str, ...]
    draws: tuple[Draw, ...]
    seconds: dict[str, float]
    chip: CompilerView | None = None
    sizes_kept: tuple[Remark, ...] = ()
    recompiles: tuple[Remark, ...] = ()
    fused: tuple[Remark, ...] = ()
    unfused: tuple[Remark, ...] = ()
    launched: tuple[Remark, ...] = ()
    in_eager: tuple[Remark, ...] = ()
    graph_breaks: tuple[Remark, ...] = ()
    refused: tuple[Remark, ...] = ()
    graphs: tuple[ProgramGraphs, ...] = ()
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    kernel_calls_before: int = 0
    bytes_left: int = 0
    saved: tuple[Remark, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes of what is saved for backwards, in memory of its own."""
        return sum(one.nbytes for one in self.saved)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers, ready for JSON."""
        plain = (
            self if self.chip is None else dataclasses.replace(self, chip=dataclasses.replace(self.chip, compiled=()))
        )
        found: dict[str, Any] = {
            key: [dict(item) if isinstance(item, dict) else item for item in value]
            if isinstance(value, tuple)
            else value
            for key, value in dataclasses.asdict(plain).items()
        }
        if self.chip is not None:
            del found["chip"]["compiled"]
        return found

    def __str__(self) -> str:
        text = io.StringIO()
        self.print(Console(file=text, width=110, force_terminal=False))
        return text.getvalue().rstrip()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as one HTML file, which needs no network and no script.

        Raises:
            TpuLoweringError: TL112 if there cannot be such a file.
        """
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(document(self._page()))
        except OSError as error:
            got = f"a file that can be written, got {str(path)!r}: {error.strerror}"
            raise errors.wrong_argument("path", got, 'report.save("report.html")') from error

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return fragment(self._page())

    def print(self, console: Console | None = None) -> None:
        """Prints the report as tables."""
        console = console or Console()
        console.print(Panel(self.headline(), title="tpu_lowering", expand=False))
        console.print(self._summary())
        lines = [f"Removed: {what}, {where}" for where, what in _by_line(self.removed)]
        lines += [f"Saved for the backward: {what}, {where}" for where, what in _by_line(self.saved)[:LINES]]
        for line in lines:
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        for title, buffers in self.sections():
            if buffers:
                console.print(_buffer_table(title, buffers))
        if self.chip is not None and self.chip.mesh is not None:
            self.chip.mesh.print(console)

    def sections(self) -> tuple[tuple[str, tuple[Remark, ...]], ...]:
        """All remarks, under their titles, but for what was removed."""
        return (
            ("Refused", self.refused),
            ("Graph breaks", self.graph_breaks),
            ("Run in eager torch", self.in_eager),
            ("Allocations kept", self.allocations_kept),
            ("Written in place", self.aliases_kept),
            ("Remarks", self.notes),
            ("Sizes not rounded up", self.sizes_kept),
            ("Compiled again", self.recompiles),
            ("Became kernels", self.fused),
            ("Did not become kernels", self.unfused),
            ("Launched otherwise", self.launched),
        )

    def headline(self) -> str:
        """The report in a few words."""
        left = len(self.allocations_kept)
        programs = "One XLA program" if self.programs_after == 1 else f"{self.programs_after} XLA programs"
        sentences = [programs, f"{_count(left, 'allocation')} left" if left else "No allocation is left"]
        if self.graph_breaks:
            sentences.append(_count(len(self.graph_breaks), "graph break"))
        if self.refused:
            sentences.append("Refused for the target")
        return ". ".join(sentences) + "."

    def _page(self) -> Page:
        rows = [(what, *sides) for part in self._rows() for what, *sides in part]
        sections = (*self.sections(), ("Saved for the backward", self.saved), ("Allocations removed", self.removed))
        return Page(
            self.headline(),
            self.programs,
            [(row[0], row[1], row[2]) for row in rows],
            sections,
            self.graphs,
            self.chip,
            self.compile_seconds,
            self.seconds,
        )

    def _summary(self) -> Table:
        table = Table(title=", ".join(self.programs), title_justify="left")
        table.add_column("")
        table.add_column("as written", justify="right")
        table.add_column("compiled", justify="right")
        for part in self._rows():
            for row in part:
                table.add_row(*row)
            table.add_section()
        if self.chip is not None and self.chip.fusion:
            table.caption = f"Generated kernels: {self.chip.fusion}."
        return table

    def _rows(self) -> list[list[tuple[str, str, str]]]:
        """The summary's rows, in parts: what, as written, compiled."""
        kept, on_cpu = len(self.allocations_kept), self.chip is not None and bool(self.compile_seconds)
        moved = self.bytes_saved + self.bytes_left
        rows = [
            *([("compiled for the CPU", "", "")] if on_cpu else []),
            ("programs (torch_tpu's split rule)", str(self.programs_before), str(self.programs_after)),
            (
                "allocations and fills for kernels",
                str(self.allocations_removed + self.fills_removed + kept),
                str(kept),
            ),
            ("bytes to fill and fetch these", size_text(moved), size_text(self.bytes_left)),
            ("kernel calls", str(self.kernel_calls_before), str(self.kernel_calls)),
        ]
        if self.saved:
            rows.append(("saved for the backward", "", size_text(self.saved_bytes)))
        if self.draws:
            drawn_before = sum(draw.source == "torch" for draw in self.draws)
            rows.append(("random draws in the programs", str(len(self.draws)), str(len(self.draws) - drawn_before)))
        return [rows, *([] if self.chip is None else _chip_rows(self.chip))]


def _chip_rows(chip: CompilerView) -> list[list[tuple[str, str, str]]]:
    parts: list[list[tuple[str, str, str]]] = []
    for direction in chip.directions:
        which = "" if len(chip.directions) == 1 else f", {direction.name}"
        rows = [(f"{chip.target}, as libtpu compiles it{which}", "", "")]
        for what, values, text in (
            ("programs", direction.programs, str),
            ("HBM bytes moved", direction.hbm_bytes, size_text),
            ("peak memory", direction.peak_bytes, size_text),
            ("device operations", direction.device_operations, str),
        ):
            rows.append((f"  {what}", text(values[0]), text(values[1])))
        parts.append(rows)
    if chip.saved_bytes is not None:
        parts.append([(f"{chip.target}, saved for the backward", "", size_text(chip.saved_bytes))])
    return parts


def _by_line(remarks: Sequence[Remark]) -> list[tuple[str, str]]:
    """For each source line what is there, ``3 × empty_like, 64.0 KiB``; the line with the most bytes first."""
    lines: dict[str, list[Remark]] = {}
    for one in remarks:
        lines.setdefault(one.where, []).append(one)
    found: list[tuple[int, str, str]] = []
    for where, members in lines.items():
        nbytes = sum(one.nbytes for one in members)
        found.append((nbytes, where, f"{names_text([one.node for one in members])}, {size_text(nbytes)}"))
    return [(where, what) for _, where, what in sorted(found, key=lambda one: -one[0])]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _buffer_table(title: str, buffers: tuple[Remark, ...]) -> Table:
    """The remarks as a table. Columns that would be empty are left out."""
    table = Table(title=title, title_justify="left", show_lines=True)
    columns = {
        "what": [f"{b.node}\n{size_text(b.nbytes)}" if b.nbytes else b.program or b.node for b in buffers],
        "where": [b.where for b in buffers],
        "why": [f"[{b.code}] {b.reason}" if b.code else b.reason for b in buffers],
        "what to do": [b.remedy for b in buffers],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        table.add_column(name, overflow="fold")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(rich.markup.escape(cell) for cell in row))
    return table
