"""The TPU compiler's view of a function: as its author wrote it, cut by a runtime's rule, and as one program."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import aot, pipeline
from tpu_lowering.analyse import splits
from tpu_lowering.codegen import source
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips, graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.programs import Program
from tpu_lowering.observers import Observer
from tpu_lowering.report.findings import CompilerView, Direction
from tpu_lowering.report.mesh import MeshView
from tpu_lowering.runtime.aot import capture, compiler
from tpu_lowering.runtime.aot.as_written import split_programs
from tpu_lowering.runtime.aot.capture import Captured
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.slices import Slice, slice_of
from tpu_lowering.runtime.aot.step import TpuStep


class Normalised:
    """An observer that keeps graphs as they were written: after normalising, before any pass."""

    def __init__(self) -> None:
        self.modules: list[fx.GraphModule] = []

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        if stage == pipeline.AS_WRITTEN:
            self.modules.append(graphs.copy_module(module))

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        """Passes come later."""

    def compiled(self, program: Program, source: Source) -> None:
        """So does code."""


def view(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    target: str,
    options: Mapping[str, Any],
    observer: Observer,
    mesh: Any = None,
    says: Callable[[str], None] = lambda text: None,
) -> CompilerView:
    """Compiles a function for a target both ways, with its backward if a result requires a gradient, and gradients are
    on; the observer is told of what our backend does, ``says`` what is begun.

    Raises:
        TpuLoweringError: see ``aot.aot_compile``.
    """
    chosen = chips.find(target)
    devices = slice_of(target, chosen, mesh)
    compiler.require_libtpu()
    normalised, given = Normalised(), copy.deepcopy((tuple(args), dict(kwargs)))
    watching = itertools.chain([(observer,)], itertools.repeat(()))  # the first form is what our backend makes

    def captured(options: Mapping[str, Any], observers: Sequence[Observer]) -> list[Captured]:
        if not torch.is_grad_enabled():
            return [aot.capture(fn, *given, chosen, options, observers, devices)]
        return aot.capture_step(fn, *given, chosen, options, observers, devices)

    def capturing(options: Mapping[str, Any]) -> list[Captured]:
        return captured(options, next(watching))

    # As it was written, attention is no kernel: it becomes one before forward and backward are parted.
    captured({**options, "fuse": "never"}, (normalised,))
    says(f"libtpu compiles for {target}")
    made = aot.compile_best(capturing, chosen, options, True)
    says(f"libtpu compiles for {target} what was written")
    written = [compile_as_written(module, chosen, devices) for module in normalised.modules]
    names = ("forward", "backward") if len(written) > 1 else ("forward",)
    pairs = zip(names, written, made.programs, strict=True)
    return CompilerView.of(
        target,
        [Direction.of(name, before, after) for name, before, after in pairs],
        saved_bytes=TpuStep.of(made.captured, made.programs).saved_bytes if len(written) > 1 else None,
        fusion=made.programs[0].fusion,
        compiled=made.programs,
        mesh=MeshView.of(made.programs) if made.programs[0].mesh.count > 1 else None,
    )


def compile_as_written(module: fx.GraphModule, chip: Chip, devices: Slice | None = None) -> list[TpuProgram]:
    """Compiles each part of a normalised graph, for one device or for all of a slice; equal parts once."""
    known: dict[bytes, TpuProgram] = {}
    programs: list[TpuProgram] = []
    for part, donated in split_programs(module, splits.RULES["torch_tpu"]):
        lowered = capture.lower_for(part, source.generate(part), chip, devices)
        key = lowered.stablehlo + repr(donated).encode()
        if key not in known:
            compiled = compiler.compile_artifact(
                lowered.artifact, chip, donated, lowered.source, mesh=lowered.mesh, named=lowered.named
            )
            known[key] = TpuProgram.of(part.name, chip, compiled, lowered.artifact, (), lowered.named)
        programs.append(known[key])
    return programs
