"""What stages of the pipeline are given, and what they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from tpu_lowering.analyse.padding.roundable_sizes import Padding
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.legal import Legal
from tpu_lowering.ir.programs import Program, Signature
from tpu_lowering.normalise.aliases import APART, Sharing
from tpu_lowering.observers import Observer
from tpu_lowering.options import Options
from tpu_lowering.runtime.base import RunnableProgram, Runtime


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is asked for: a captured graph as a program, for the sizes of given arguments.

    Attributes:
        name: the program's name.
        captured: graph from AOTAutograd; stays as it is.
        arguments: tensors (real or fake) and integers that the program will be called with.
        options: what the user chose.
        observer: told of every stage.
        runtime: where it will run; None for the CPU, if it is not to be compiled.
        sharing: what is known of the memory of its results.
        padding: how the graph runs with arguments of rounded sizes; None if their sizes are the true ones.
    """

    name: str
    captured: fx.GraphModule
    arguments: Sequence[Any]
    options: Options
    observer: Observer
    runtime: Runtime | None = None
    sharing: Sharing = APART
    padding: Padding | None = None

    @property
    def chip(self) -> Chip:
        """What it is for."""
        return CPU if self.runtime is None else self.runtime.chip


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """What stages have made so far.

    Attributes:
        module: the graph, edited in place by each stage.
        numbers: expressions of the numbers that the program is told at each call.
        signature: how its results go back to the caller.
        current: for each kernel, whether the names that it reads still have the values it was traced with.
        program: the lowered graph with its signature.
        source: its Python source.
        runnable: what is called with the user's tensors.
    """

    module: fx.GraphModule
    numbers: tuple[Any, ...] = ()
    signature: Signature | None = None
    current: tuple[Callable[[], bool], ...] = ()
    program: Program | None = None
    source: Source | None = None
    runnable: RunnableProgram | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage that always runs.

    Attributes:
        name: a verb phrase.
        run: the stage.
        legal: what may be in the graph from there on.
    """

    name: str
    run: Callable[[Request, Progress], Progress]
    legal: Legal
