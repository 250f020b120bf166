"""The runtime of torch_tpu: a program is one JAX function of torch_tpu's, called with the user's tensors.

Torch_tpu compiles and launches it. What is donated is said once, when the function is registered: the buffers of
mutated inputs, so that torch_tpu updates them in place, and nothing for results, which are fresh buffers. A mutated
argument is then given its new value as torch_tpu's own optimizers do it, by ``copy_``, which there moves no data: the
tensor takes over the result's buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch
import torch.distributed as dist
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import tpu_tensors
from tpu_lowering.runtime import calling_convention, peers
from tpu_lowering.runtime.aot import refusals
from tpu_lowering.runtime.spread import Spread, on_device


class TorchTpuRuntime:
    """Programs on tensors of device ``tpu``.

    Attributes:
        device: the one that they are on.
        chip: the TPU behind it.
    """

    def __init__(self, graph: fx.Graph, device: torch.device) -> None:
        self.graph, self.device = graph, device
        self.chip = tpu_tensors.chip()

    def check(self, arguments: Sequence[Any]) -> None:
        """Refuses tensors elsewhere.

        Raises:
            TpuLoweringError: TL103.
        """
        calling_convention.check_on_device(self.graph, arguments, str(self.device))

    def remarks(self, program: Program) -> tuple[Action, ...]:
        return ()

    def compile(self, program: Program, source: Source) -> TorchTpuProgram:
        """Lowers and registers a program; libtpu compiles it when torch_tpu first launches it.

        Raises:
            TpuLoweringError: TL602, TL603 or TL604 for what Pallas refuses to lower for the chip.
        """
        written = sorted(range(len(program.signature.mutated)), key=program.signature.mutated.__getitem__)
        mutated = [program.signature.mutated[index] for index in written]
        donated = tuple(sorted(program.donated_inputs()))
        refusals.refuse_wide_operands(source, self.chip)
        function = updates_first(program, load.load(program, source, "mosaic"), written)
        try:
            registered = self._registered(program, function, donated)
        except errors.TpuLoweringError:
            raise
        except Exception as error:
            raise refusals.from_message(str(error), type(error).__name__, source, self.chip) from error
        return TorchTpuProgram(program, registered, mutated, self.device)

    def _registered(
        self, program: Program, function: Callable[..., Any], donated: tuple[int, ...]
    ) -> tpu_tensors.Registered:
        """The function as torch_tpu knows it: on the device of its tensors, or on all ranks' at once.

        Raises:
            TpuLoweringError: TL707 for a mesh of some ranks: torch_tpu launches on all of them.
        """
        mesh = program.mesh
        if mesh is None:
            jitted = jax.jit(function, donate_argnums=donated, keep_unused=True)
            return tpu_tensors.Registered(program.name, jitted, load.input_specs(program), donated)
        if mesh.ranks != tuple(range(dist.get_world_size())):
            calling_convention.refuse_mesh(program, f"tensors on {self.device} of the ranks {list(mesh.ranks)} alone")
        spread = Spread(mesh, compat.tpu_mesh_devices(mesh.axes, mesh.sizes))
        types = list(map(TensorType.of, load.input_values(program)))
        jitted = spread.jitted(function, types, donate_argnums=donated, keep_unused=True)
        written = len(program.signature.mutated)
        results = [TensorType(one.element, on_device(one.shape)) for one in program.types()]
        results = [*results[len(results) - written :], *results[: len(results) - written]]
        numbers = [int(device.id) for device in spread.devices]

        def make() -> tuple[str, tpu_tensors.Registered]:
            made = tpu_tensors.Registered(program.name, jitted, spread.specs(types), donated, numbers, results)
            return made.exported.mlir_module().replace(program.name, "program"), made

        if compat.is_fake_group():
            return make()[1]
        return peers.peers_of(mesh).agree(make, calling_convention.first_collective(program))[1]


class TorchTpuProgram:
    """A registered program and its constants, on the device. Calling it is thread-safe as far as torch_tpu is.

    Attributes:
        mutated: positions of the arguments whose new values are its first results.
    """

    def __init__(
        self, program: Program, registered: tpu_tensors.Registered, mutated: Sequence[int], device: torch.device
    ) -> None:
        self.program, self.registered, self.mutated, self.device = program, registered, mutated, device
        self.constants = [tpu_tensors.moved(value, device) for value in program.constants().values()]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Launches the program.

        Args:
            arguments: the captured graph's arguments: tensors of torch_tpu, single numbers, and integers.

        Returns:
            The results, with the strides eager gives them; torch_tpu computes them, and the new values of mutated
            arguments, while the caller goes on.
        """
        arguments = self.program.all_arguments(arguments)
        inputs = [arguments[position] for position in self.program.inputs]
        with torch.no_grad():
            inputs = [tpu_tensors.moved(tensor, self.device) for tensor in inputs]
            for position in self.registered.donated:
                if not owns_memory(inputs[position]):
                    inputs[position] = inputs[position].clone()
            results = self._launched([*inputs, *self.constants])
            for position, value in zip(self.mutated, results, strict=False):
                arguments[position].copy_(value)
            return calling_convention.results(self.program.signature, arguments, results[len(self.mutated) :])

    def _launched(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of one launch. Numbers go to the ranks of a mesh, and come back, as tensors of one element."""
        if self.program.mesh is None:
            return self.registered(inputs)
        results = self.registered([tensor.reshape(on_device(tensor.shape)) for tensor in inputs])
        types = self.program.types()
        types = [types[len(types) - len(self.mutated) + at] for at in range(len(self.mutated))] + types
        return [result.reshape(type_.shape) for result, type_ in zip(results, types, strict=False)]


def updates_first(
    program: Program, function: Callable[..., Any], order: Sequence[int]
) -> Callable[..., tuple[jax.Array, ...]]:
    """A program's function with the mutated arguments' new values before its results.

    A donated buffer goes to the first result of its shape and dtype: to the argument's own new value then.

    Args:
        program: the program.
        function: gives the results, then the new values.
        order: the new values' order, as positions among them.
    """
    computed = len(program.output_nodes()) - len(order)

    def ordered(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        values = function(*arrays)
        return (*(values[computed + index] for index in order), *values[:computed])

    ordered.__name__ = program.name
    return ordered


def owns_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its storage: nothing is lost with the buffer but its own elements."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return whole and tensor.storage_offset() == 0 and tensor.is_contiguous()
