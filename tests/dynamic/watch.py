"""Compiling with everything counted: graphs that Dynamo captures, graphs of AOTAutograd, programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program


class Watch:
    """An observer that counts.

    Attributes:
        graphs: how many of Dynamo's graphs were compiled.
        captured: names of graphs from AOTAutograd, once for each program of each.
        programs: names of programs that were compiled.
        actions: what passes and analyses said.
    """

    def __init__(self) -> None:
        self.graphs = 0
        self.programs: list[str] = []
        self.actions: list[Action] = []

    def backend(self, module: fx.GraphModule, examples: Sequence[Any], **options: Any) -> Callable[..., Any]:
        compiled = helion_tpu(module, examples, observers=(self,), options=options)
        self.graphs += 1  # not where Dynamo gives up halfway, to begin again with floats as constants
        return compiled

    def compile(self, function: Callable[..., Any], dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
        torch._dynamo.reset()
        backend = functools.partial(self.backend, **options)
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)

    def of(self, kind: str) -> int:
        """How many programs of a kind were compiled: forward, backward, inference."""
        return sum(name.startswith(kind) for name in self.programs)

    def reasons(self, kind: str) -> list[str]:
        return [action.reason for action in self.actions if action.kind == kind]

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """Stages are not counted."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self.actions += actions

    def compiled(self, program: Program, source: Source) -> None:
        self.programs.append(program.name)
