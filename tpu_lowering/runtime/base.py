"""What a runtime is: it takes a program and its source, and gives something that takes the caller's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.programs import Program


class RunnableProgram(Protocol):
    """A compiled program."""

    def __call__(self, arguments: Sequence[Any], /) -> list[Any]:
        """Runs it on the captured graph's arguments; returns results with eager's strides."""
        ...


class Runtime(Protocol):
    """Where programs run. Runtimes do not know each other."""

    @property
    def chip(self) -> Chip:
        """What kernels are traced for."""
        ...

    def check(self, arguments: Sequence[Any]) -> None:
        """Refuses arguments it cannot run with, by a coded error."""
        ...

    def remarks(self, program: Program) -> Sequence[Action]:
        """What a user should know of how it will run a program."""
        ...

    def compile(self, program: Program, source: Source) -> RunnableProgram: ...
