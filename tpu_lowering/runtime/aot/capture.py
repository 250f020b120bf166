"""Capturing a function for a TPU: the whole of ``torch.compile`` runs, but nothing is executed on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import torch

from tpu_lowering import compat, errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels import jaxprs
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.aot import refusals


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A program lowered for a TPU.

    Attributes:
        program: the program.
        source: its generated source.
        artifact: its StableHLO with Mosaic kernels inside, as ``jax.export`` serialises it.
        stablehlo: the same as text, source locations included: equal for equal programs of the same lines.
        mutated_inputs: for each mutated argument, its position among the program's inputs.
    """

    program: Program
    source: Source
    artifact: bytes
    stablehlo: bytes
    mutated_inputs: tuple[int, ...]


class TpuRuntime:
    """A runtime that keeps programs instead of running them; calling one gives tensors with undefined contents."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.captured: list[Captured] = []

    def check(self, arguments: Sequence[Any]) -> None:
        calling_convention.check_devices(arguments)

    def remarks(self, program: Program) -> tuple[Action, ...]:
        return ()

    def compile(self, program: Program, source: Source) -> Any:
        self.captured.append(lower_for(program, source, self.chip))

        def undefined_results(arguments: Sequence[Any]) -> list[Any]:
            count = len(program.output_nodes()) - len(program.signature.mutated)
            values = [node.meta["val"] for node in program.output_nodes()[:count]]
            return calling_convention.results(
                program.signature, arguments, [torch.empty(v.shape, dtype=v.dtype) for v in values]
            )

        return undefined_results


def lower_for(program: Program, source: Source, chip: Chip) -> Captured:
    """Lowers a program for a TPU.

    Raises:
        TpuLoweringError: TL602, TL603 or TL604 for what Pallas refuses to lower for the chip.
    """
    refusals.refuse_wide_operands(source, chip)
    function = load.load(program, source, "mosaic")
    specs = load.input_specs(program)
    try:
        with jaxprs.kernel_scope([], chip), compat.enable_x64(True):
            exported = jax.export.export(jax.jit(function), platforms=["tpu"])(*specs)
    except errors.TpuLoweringError:
        raise
    except Exception as error:
        raise refusals.from_message(str(error), type(error).__name__, source, chip) from error
    text = str(exported.mlir_module()).replace(program.name, "program")
    return Captured(program, source, bytes(exported.serialize()), text.encode(), program.donated_inputs())
