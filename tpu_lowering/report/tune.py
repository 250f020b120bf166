"""``tune``: the forms of a function's regions and kernels, compiled for a TPU, and which of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import fx

from tpu_lowering import aot
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.choose.choices import Answer, Score
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.programs import Program
from tpu_lowering.observers import Observer
from tpu_lowering.runtime.aot import compiler


class Answers:
    """An observer that keeps the answers, equal ones once."""

    def __init__(self) -> None:
        self.found: dict[Answer, int] = {}

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """Graphs are of no interest."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        """Nor are actions."""

    def compiled(self, program: Program, source: Source) -> None:
        """Nor is code."""

    def answered(self, program: str, answer: Answer) -> None:
        self.found[answer] = self.found.get(answer, 0) + 1


def tune(
    fn: Callable[..., Any],
    args: Sequence[Any],
    chip: Chip,
    options: Mapping[str, Any],
    observers: Sequence[Observer] = (),
) -> dict[Answer, int]:
    """Captures a function for a chip with option ``tune``; observers are told of every stage.

    Returns:
        Each answer, and how often the function asks for it.

    Raises:
        TpuLoweringError: TL108 without libtpu, and any code of compiling.
    """
    compiler.require_libtpu()
    answers = Answers()
    aot.capture(fn, tuple(args), {}, chip, {"tune": True, **options}, (answers, *observers))
    return answers.found


def show(answers: Mapping[Answer, int], chip: Chip, console: Console) -> None:
    """Prints a table of the forms: HBM MiB, cycles of the simulated schedule, and the larger of bytes over bandwidth
    and cycles over clock."""
    if not answers:
        console.print(f"Nothing to choose for {chip.name}: no region and no launch has a second form.")
        return
    table = Table(title=f"Forms for {chip.name}, as its compiler says")
    table.add_column("what")
    table.add_column("form")
    for heading in ("HBM MiB", "cycles", "at least, us"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for answer, times in answers.items():
        name = answer.name if times == 1 else f"{answer.name}, {times} times"
        for at, (label, score) in enumerate(zip(answer.labels, answer.scores, strict=True)):
            table.add_row("" if at else name, label, *_cells(score, chip, at == answer.chosen))
        table.add_section()
    console.print(table)


def _cells(score: Score | None, chip: Chip, taken: bool) -> tuple[str, str, str, str]:
    if score is None or score.error:
        return "-", "-", "-", "not compiled: time was up" if score is None else score.error
    cycles = "-" if score.cycles is None else f"{score.cycles:,}"
    return f"{score.hbm_bytes / 2**20:,.1f}", cycles, f"{score.seconds(chip) * 1e6:,.1f}", "taken" if taken else ""
