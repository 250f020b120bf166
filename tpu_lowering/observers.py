"""What watches a compilation: reports, dumps and logs. Steps and passes know nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import fx

from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.choose.choices import Answer
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program


class Observer(Protocol):
    """What watches a compilation: ``explain``, dumps and logs. Passes know nothing of them."""

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """After a stage that edits the graph: "captured", then the name of each step and pass."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        """After a pass: what it did."""

    def compiled(self, program: Program, source: Source) -> None:
        """After code generation."""


@runtime_checkable
class HearsAnswers(Protocol):
    """An observer that is told, too, what the TPU compiler says of forms, and which of them was taken."""

    def answered(self, program: str, answer: Answer) -> None:
        """After each question."""


@runtime_checkable
class HearsStages(Protocol):
    """An observer that is told, too, when each stage begins, and how long it took: of the last ones as well, which edit
    no graph."""

    def begins(self, program: str, stage: str) -> None:
        """Before a stage."""

    def ended(self, program: str, stage: str, seconds: float) -> None:
        """After it."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        for observer in self.observers:
            observer.stage(program, stage, module, seconds)

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        for observer in self.observers:
            observer.acted(program, name, actions)

    def compiled(self, program: Program, source: Source) -> None:
        for observer in self.observers:
            observer.compiled(program, source)

    def answered(self, program: str, answer: Answer) -> None:
        for observer in self.observers:
            if isinstance(observer, HearsAnswers):
                observer.answered(program, answer)

    def begins(self, program: str, stage: str) -> None:
        for observer in self.observers:
            if isinstance(observer, HearsStages):
                observer.begins(program, stage)

    def ended(self, program: str, stage: str, seconds: float) -> None:
        for observer in self.observers:
            if isinstance(observer, HearsStages):
                observer.ended(program, stage, seconds)
