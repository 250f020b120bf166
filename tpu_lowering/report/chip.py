"""The TPU compiler's view of a function: as its author wrote it, cut by a runtime's rule, and as one program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from tpu_lowering.report.mesh import MeshView
from tpu_lowering.report.report import CompilerView
from tpu_lowering.runtime.aot import capture, compiler
from tpu_lowering.runtime.aot.as_written import split_programs
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.slices import Slice, slice_of


class Normalised:
    """An observer that keeps the graph as it was written: after normalising, before any pass."""

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
) -> CompilerView:
    """Compiles a function for a target both ways; the observer is told of what our backend does.

    Raises:
        TpuLoweringError: see ``aot.aot_compile``.
    """
    chosen = chips.find(target)
    devices = slice_of(target, chosen, mesh)
    compiler.require_libtpu()
    normalised = Normalised()
    given = copy.deepcopy((tuple(args), dict(kwargs)))
    after = aot.compile_best(fn, *given, chosen, options, True, (normalised, observer), devices)
    before = compile_as_written(normalised.modules[-1], chosen, devices)
    return CompilerView(
        target=target,
        programs=(len(before), 1),
        hbm_bytes=(sum(part.hbm_bytes for part in before), after.hbm_bytes),
        peak_bytes=(max((part.peak_bytes for part in before), default=0), after.peak_bytes),
        device_operations=(sum(len(part.entry_operations) for part in before), len(after.entry_operations)),
        fusion=after.fusion,
        mesh=MeshView.of(after) if after.mesh.count > 1 else None,
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
