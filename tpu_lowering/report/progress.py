"""A line on the terminal that says what ``explain`` is at, from its first second on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import Progress as Line
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import fx

from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program

COMPILERS = {"compile": "XLA compiles"}
"""What the line says of a stage, where that is not its name."""


class Progress:
    """An observer with a line on stderr, which goes when its scope ends; without one where stderr is no terminal.

    The line is drawn by a thread of its own, so it moves while XLA compiles.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self.line = Line(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.line.add_task("starts")

    def __enter__(self) -> Self:
        self.line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.line.stop()

    def says(self, text: str) -> None:
        """Shows a text."""
        self.line.update(self.task, description=text)

    def begins(self, program: str, stage: str) -> None:
        self.says(f"{program}: {COMPILERS.get(stage, stage)}")

    def ended(self, program: str, stage: str, seconds: float) -> None:
        """What comes next says so itself."""

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """See ``begins``."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        """Only where the compilation stands is shown."""

    def compiled(self, program: Program, source: Source) -> None:
        """See ``begins``."""
