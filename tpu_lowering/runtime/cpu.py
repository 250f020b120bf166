"""The embedded runtime: programs on JAX's CPU backend, called with the user's torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import arrays
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.programs import Program
from tpu_lowering.passes.base import Action
from tpu_lowering.runtime import edge
from tpu_lowering.runtime.imports import Imports


class CpuRuntime:
    """JAX's CPU backend, in this process.

    Attributes:
        kernels: how Pallas kernels run.
    """

    device_kind = ""

    def __init__(self, kernels: Execution = "vectorized") -> None:
        self.kernels: Execution = kernels

    def check(self, arguments: Sequence[Any]) -> None:
        edge.check_devices(arguments)

    def compile(self, program: Program, source: Source) -> CpuProgram:
        return CpuProgram(program, source, self.kernels)

    def remarks(self, program: Program) -> list[Action]:
        return edge.interpreted_calls(program) if self.kernels == "vectorized" else []


class CpuProgram:
    """A compiled program.

    Calling it is thread-safe: it holds no state but the compiled code, the program's constants, and the arrays of
    arguments that come with every call.
    """

    def __init__(self, program: Program, source: Source, kernels: Execution = "vectorized") -> None:
        self.program = program
        self.imports = Imports(len(program.inputs))
        function = load.load(program, source, kernels)
        with compat.enable_x64(True):
            self.constants = [arrays.to_jax(value) for value in program.constants().values()]
            self.pointers = [constant.unsafe_buffer_pointer() for constant in self.constants if constant.size]
            # The CPU by name: where JAX finds a TPU or GPU, that would be its default.
            device = jax.devices("cpu")[0]
            sharding = jax.sharding.SingleDeviceSharding(device)
            types = load.input_types(program)
            specs = [jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=sharding) for t in types]
            with jax.default_device(device):
                self.compiled = jax.jit(function).lower(*specs).compile()

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, with the strides eager gives them. Mutated arguments have been written back to.
        """
        arguments = self.program.all_arguments(arguments)
        with compat.enable_x64(True):
            given = [arguments[position] for position in self.program.inputs]
            inputs = self.imports.take(given)
            results = jax.block_until_ready(self.compiled(*inputs, *self.constants))
            taken = {*self.pointers, *(tensor.data_ptr() for tensor in given)}
            tensors = [_owned(arrays.to_torch(result), taken) for result in results]
        signature = self.program.signature
        computed = len(tensors) - len(signature.mutated)
        results = edge.results(signature, tensors[:computed])
        for position, value in zip(signature.mutated, tensors[computed:], strict=True):
            with torch.no_grad():
                arguments[position].copy_(value)
        return results


def _owned(tensor: torch.Tensor, taken: set[int]) -> torch.Tensor:
    """A result in memory of its own: JAX hands an input that is returned unchanged, or one value returned
    twice, out as the same buffer."""
    pointer = tensor.data_ptr()
    if tensor.numel() and pointer in taken:
        return tensor.clone()
    taken.add(pointer)
    return tensor
