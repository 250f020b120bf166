"""The runtime of torch_xla: a program enters the lazy graph of the user's tensors as one HLO computation.

It is neither compiled nor run here: torch_xla does both at its next step boundary (``torch_xla.sync()``), together
with what else the user recorded. A mutated argument gets its new value as any in-place operation of torch_xla gives
it one, so that torch_xla donates the old buffer at that boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors, releases
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import MemoryPlace, Output, Program, Signature, dense_order
from tpu_lowering.kernels import xla_tensors
from tpu_lowering.normalise import signature
from tpu_lowering.runtime import calling_convention


class XlaRuntime:
    """Programs on tensors of device ``xla``, whatever device torch_xla runs on.

    Attributes:
        chip: what is behind torch_xla.
    """

    def __init__(self, graph: fx.Graph) -> None:
        releases.check("torch_xla", xla_tensors.DEVICE)
        self.chip = xla_tensors.chip()
        self.graph = graph

    def check(self, arguments: Sequence[Any]) -> None:
        """Refuses tensors elsewhere, and arguments whose memory torch_xla does not tell.

        Raises:
            TpuLoweringError: TL103, TL110.
        """
        calling_convention.check_on_device(self.graph, arguments, str(compat.xla_module("torch_xla").device()))
        _check_memory(self.graph, signature.written_back(self.graph))

    def remarks(self, program: Program) -> list[Action]:
        """The kernel calls that run in Pallas's interpreter on torch_xla's CPU, each with why."""
        return calling_convention.interpreted_calls(program) if xla_tensors.execution() == "vectorized" else []

    def compile(self, program: Program, source: Source) -> XlaProgram:
        calling_convention.refuse_mesh(program, "tensors of torch_xla")
        return XlaProgram(program, source)


def _check_memory(graph: fx.Graph, written: Sequence[int]) -> None:
    """Refuses arguments that are views of one tensor, of which one is written to.

    AOTAutograd makes one argument of them and cuts the views out of it again, where their strides and offsets say;
    tensors of torch_xla report those of a tensor of their own.

    Raises:
        TpuLoweringError: TL110.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for position in written:
        for user in placeholders[position].users:
            if user.target is compat.aten.as_strided.default:
                raise errors.refuse(
                    "TL110",
                    f"argument {placeholders[position].name}",
                    "expected arguments with memory of their own, got views of one tensor of torch_xla's, which does "
                    "not say where in it they lie",
                    "pass the tensor itself and cut the views inside the compiled function, or .clone() one of them",
                    graphs.source_line(user),
                )


class XlaProgram:
    """A program as an HLO computation.

    It holds the computation and the constants, on the device. Calling it is thread-safe as far as torch_xla is.
    """

    def __init__(self, program: Program, source: Source) -> None:
        self.program = program
        self.device = compat.xla_module("torch_xla").device()
        self.constants = [value.to(self.device) for value in program.constants().values()]
        loaded = load.load(program, source, xla_tensors.execution())
        # Tensors of torch_xla have no storage order.
        function = calling_convention.in_logical_order(loaded, calling_convention.orders_of_results(program.signature))
        specs = load.input_specs(program)
        self.computation = xla_tensors.Computation(program.name, function, specs, len(program.output_nodes()))

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Records one call.

        Args:
            arguments: the captured graph's arguments: tensors of torch_xla, single numbers, and integers.

        Returns:
            The results; mutated arguments have their new values, both for torch_xla to compute.

        Raises:
            TpuLoweringError: TL707 for an argument that ``mark_sharding`` has spread.
        """
        arguments = self.program.all_arguments(arguments)
        given = [arguments[position] for position in self.program.inputs]
        inputs = [t if t.device.type == xla_tensors.DEVICE else t.to(self.device) for t in given]
        edge_of = self.program.signature
        _refuse_spread(inputs)
        with torch.no_grad():
            tensors = self.computation([*inputs, *self.constants])
            computed = len(tensors) - len(edge_of.mutated)
            for position, value in zip(edge_of.mutated, tensors[computed:], strict=True):
                arguments[position].copy_(value)
            return _results(edge_of, arguments, tensors[:computed])


def _refuse_spread(tensors: Sequence[torch.Tensor]) -> None:
    """Refuses tensors that are spread over devices: XLA would run each kernel whole on every one, without a word."""
    for at, tensor in enumerate(tensors):
        if found := compat.xla_sharding(tensor):
            raise errors.refuse(
                "TL707",
                f"input {at} of the program, {tuple(tensor.shape)}",
                f"expected tensors on one device, got one that torch_xla's mark_sharding has spread: {found}",
                "give options={'mesh': ..., 'shardings': ...} for tensors on the CPU, or start one process a rank",
            )


def _results(signature: Signature, arguments: Sequence[Any], computed: Sequence[torch.Tensor]) -> list[Any]:
    """What the caller expects: the program's results, and those that lie in arguments' and each other's memory."""
    given = iter(computed)
    found = [next(given) if spec.is_computed else spec.constant for spec in signature.outputs]
    for at, spec in enumerate(signature.outputs):
        if spec.place is not None and spec.place.of_argument:
            found[at] = _placed(spec, spec.place, arguments[spec.place.base], None)
        elif spec.place is not None:
            found[at] = _placed(spec, spec.place, found[spec.place.base], signature.outputs[spec.place.base])
    return found[: signature.returned]


def _placed(spec: Output, place: MemoryPlace, base: torch.Tensor, described: Output | None) -> torch.Tensor:
    """A result that shares the memory of an argument, or of a result, as a view of it.

    Arguments were captured as row-major, which is how tensors of torch_xla report themselves.
    """
    if place.offset is None:
        return base
    stride = spec.stride
    assert stride is not None
    if described is not None and described.stride is not None:
        order = dense_order(described.shape, described.stride)
        if order is not None:
            base = base.permute(order)
    if base.dtype != place.dtype:
        base = base.view(place.dtype)
    return base.as_strided(spec.shape, stride, place.offset)
