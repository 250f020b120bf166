"""Capturing a function for a TPU: the whole of ``torch.compile`` runs, but nothing is executed on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import torch

from tpu_lowering import compat, errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.aot import refusals
from tpu_lowering.runtime.aot.compiler import Orders
from tpu_lowering.runtime.aot.slices import Slice, one_device
from tpu_lowering.runtime.spread import Spread


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A program lowered for a TPU.

    Attributes:
        program: the program.
        source: its generated source.
        artifact: its StableHLO with Mosaic kernels inside, as ``jax.export`` serialises it.
        stablehlo: the same as text, source locations included: equal for equal programs of the same lines.
        mutated_inputs: for each mutated argument, its position among the program's inputs.
        mesh: whose devices all run it; None for one device.
        named: the same devices with the axes that the user has named.
        arguments: the user's name of each argument of the captured graph, as ``named_parameters`` and signatures have
            it; "" where it is not known.
        seen: how many of the captured graph's results the caller gets; the others are saved for a backward.
        fused, unfused, launched: see ``TpuProgram``.
        orders: of inputs and of results in HBM; see ``compiler.compile_artifact``.
    """

    program: Program
    source: Source
    artifact: bytes
    stablehlo: bytes
    mutated_inputs: tuple[int, ...]
    mesh: Mesh | None = None
    named: Mesh | None = None
    arguments: tuple[str, ...] = ()
    seen: int = 0
    fused: tuple[Remark, ...] = ()
    unfused: tuple[Remark, ...] = ()
    launched: tuple[Remark, ...] = ()
    orders: Orders = ((), ())


class TpuRuntime:
    """A runtime that keeps programs instead of running them; calling one gives tensors with undefined contents."""

    def __init__(self, chip: Chip, devices: Slice | None = None) -> None:
        """
        Args:
            chip: for which.
            devices: those that run programs together; None for one device.
        """
        self.chip, self.devices = chip, devices
        self.captured: list[Captured] = []
        self.inputs: tuple[str, ...] = ()  # names of the inputs of Dynamo's graph

    def check(self, arguments: Sequence[Any]) -> None:
        calling_convention.check_devices(arguments)

    def remarks(self, program: Program) -> tuple[Action, ...]:
        return ()

    def compile(self, program: Program, source: Source) -> Any:
        known = compat.results_of_forward()
        lowered = lower_for(program, source, self.chip, self.devices)
        seen = program.signature.returned if known is None else known.seen
        self.captured.append(dataclasses.replace(lowered, arguments=self._names(program), seen=seen))

        def undefined_results(arguments: Sequence[Any]) -> list[Any]:
            count = len(program.output_nodes()) - len(program.signature.mutated)
            values = [node.meta["val"] for node in program.output_nodes()[:count]]
            return calling_convention.results(
                program.signature, arguments, [torch.empty(v.shape, dtype=v.dtype) for v in values]
            )

        return undefined_results

    def _names(self, program: Program) -> tuple[str, ...]:
        """The user's names of a graph's arguments."""
        numbers = [compat.input_behind(node) for node in program.module.graph.find_nodes(op="placeholder")]
        return tuple("" if at is None or at >= len(self.inputs) else self.inputs[at] for at in numbers)


def lower_for(program: Program, source: Source, chip: Chip, devices: Slice | None = None) -> Captured:
    """Lowers a program for a TPU, or for all devices of a slice.

    Raises:
        TpuLoweringError: TL602, TL603 or TL604 for what Pallas refuses to lower for the chip; TL721 or TL723 for a
            program that is not one of these devices.
    """
    refusals.refuse_wide_operands(source, chip)
    if program.mesh is not None and devices is None:
        raise one_device(chip, f"collectives among {program.mesh.count} ranks")
    mesh = None if devices is None else devices.mesh_for(program)
    function = calling_convention.in_logical_order(
        load.load(program, source, "mosaic"), calling_convention.orders_of_saved(program)
    )
    try:
        with jaxprs.kernel_scope([], chip), compat.enable_x64(True):
            jitted, specs = _jitted(program, function, chip, mesh)
            exported = jax.export.export(jitted, platforms=["tpu"])(*specs)
    except errors.TpuLoweringError:
        raise
    except Exception as error:
        raise refusals.from_message(str(error), type(error).__name__, source, chip) from error
    text = str(exported.mlir_module()).replace(program.name, "program")
    named = mesh if devices is None or devices.named is None else devices.named
    return Captured(program, source, bytes(exported.serialize()), text.encode(), program.donated_inputs(), mesh, named)


def _jitted(program: Program, function: Callable[..., Any], chip: Chip, mesh: Mesh | None) -> tuple[Any, Sequence[Any]]:
    """A program's function for one device or for all of a mesh, and what it takes."""
    if mesh is None:
        return jax.jit(function), load.input_specs(program)
    types = [TensorType.of(value) for value in load.input_values(program)]
    spread = Spread(mesh, (), chip.device_kind)
    return spread.jitted(function, types), spread.specs(types)
