"""The embedded runtime: programs on JAX's CPU backend, called with the user's torch tensors.

XLA sets its threads to flush denormal numbers, as ``torch.set_flush_denormal(True)`` does in eager: what is smaller
than 1.2e-38 in float32 (2.2e-308 in float64) is 0, as operand and as result. A TPU has no denormal numbers either.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import arrays, forks
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import CPU
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.programs import Interface, Program
from tpu_lowering.kernels import interpreter_findings
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.cache import executables
from tpu_lowering.runtime.cache.executables import Stored
from tpu_lowering.runtime.cache.store import Store
from tpu_lowering.runtime.imported_arguments import Imports


class CpuRuntime:
    """JAX's CPU backend, in this process.

    Attributes:
        kernels: how Pallas kernels run.
        store: where executables are kept for later processes; None for nowhere.
    """

    chip = CPU

    def __init__(self, kernels: Execution = "vectorized", store: Store | None = None) -> None:
        self.kernels: Execution = kernels
        self.store = store

    def check(self, arguments: Sequence[Any]) -> None:
        calling_convention.check_devices(arguments)

    def compile(self, program: Program, source: Source) -> CpuProgram:
        with compat.enable_x64(True):
            constants = list(program.constants().values())
            compiled, stored = self._compiled(program, source)
            if self.kernels == "tpu_interpret":
                compiled = functools.partial(interpreter_findings.watched, compiled)
            return CpuProgram(program, constants, compiled, stored)

    def _compiled(self, program: Program, source: Source) -> tuple[Any, Stored | None]:
        """The program as an executable, from the store, or compiled and stored; and its place there.

        Without kernels the source says it all, so a program that is in the store is not even traced. What a kernel
        computes is known only when it has been traced; such a program is looked up by its lowered form.
        """
        if self.store is None:
            return _lowered(program, source, self.kernels).compile(), None
        lowered = _lowered(program, source, self.kernels) if source.kernels else None
        kind, text = ("source", source.text) if lowered is None else ("lowered", lowered.as_text())
        inputs = load.input_specs(program)
        outputs = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in program.types()]
        stored = Stored(executables.key(kind, [text, repr(inputs), repr(outputs)]), inputs, outputs)
        found = executables.load(self.store, stored)
        if found is not None:
            return found, stored
        compiled = (lowered or _lowered(program, source, self.kernels)).compile()
        return compiled, stored if executables.save(self.store, stored.key, compiled) else None

    def remarks(self, program: Program) -> list[Action]:
        return calling_convention.interpreted_calls(program) if self.kernels == "vectorized" else []


class CpuProgram:
    """A compiled program.

    Calling it is thread-safe: it holds no state but the compiled code, the program's constants, and the arrays of
    arguments that come with every call.
    """

    def __init__(
        self, interface: Interface, constants: Sequence[torch.Tensor], compiled: Any, stored: Stored | None = None
    ) -> None:
        """Made inside ``compat.enable_x64(True)``.

        Args:
            interface: how the program is called.
            constants: what the executable takes after the program's inputs.
            compiled: the executable.
            stored: its place in a store.
        """
        self.interface, self.compiled, self.stored = interface, compiled, stored
        self.imports = Imports(len(interface.inputs))
        self.constants = [arrays.to_jax(value) for value in constants]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, with the strides eager gives them. Mutated arguments have been written back to.
        """
        forks.refuse_after_fork()
        arguments = self.interface.all_arguments(arguments)
        signature = self.interface.signature
        given = [arguments[position] for position in self.interface.inputs]
        results = self.execute(given)
        computed = len(results) - len(signature.mutated)
        tensors = list(map(arrays.to_torch, results[:computed]))
        if signature.mutated:
            with torch.no_grad():
                for position, value in zip(signature.mutated, _new_values(results[computed:], given), strict=True):
                    arguments[position].copy_(value)
        return calling_convention.results(signature, arguments, tensors)

    def execute(self, given: Sequence[torch.Tensor]) -> Sequence[jax.Array]:
        """What the executable computes of the program's inputs: results, then values of mutated arguments."""
        with compat.enable_x64(True):
            return jax.block_until_ready(self.compiled(*self.imports.take(given), *self.constants))


def _new_values(values: Sequence[jax.Array], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """New values of mutated arguments, to be read while ``values`` live.

    JAX hands an input that is returned unchanged out as the same buffer. Such a value is copied, or it would change
    with the argument that it was.
    """
    taken = {tensor.data_ptr() for tensor in given} if len(values) > 1 else set[int]()
    return [
        arrays.to_torch(value) if value.size and value.unsafe_buffer_pointer() in taken else arrays.borrowed(value)
        for value in values
    ]


def _lowered(program: Program, source: Source, kernels: Execution) -> Any:
    """The program as StableHLO, for JAX's first CPU device: where JAX finds a TPU or GPU, that is its default."""
    device = jax.devices("cpu")[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    specs = load.input_specs(program, sharding)
    with compat.enable_x64(True), jax.default_device(device):
        return jax.jit(load.load(program, source, kernels)).lower(*specs)
