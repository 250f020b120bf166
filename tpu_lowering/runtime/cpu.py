"""The embedded runtime: programs on JAX's CPU backend, called with the user's torch tensors.

XLA sets its threads to flush denormal numbers, as ``torch.set_flush_denormal(True)`` does in eager: what is smaller
than 1.2e-38 in float32 (2.2e-308 in float64) is 0, as operand and as result. A TPU has no denormal numbers either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
from tpu_lowering.ir.programs import Interface, Output, Program, dense_order
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import interpreter_findings
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.cache import executables
from tpu_lowering.runtime.cache.executables import Stored
from tpu_lowering.runtime.cache.store import Store
from tpu_lowering.runtime.imported_arguments import Imports, Input

Call = Callable[[Sequence[jax.Array]], Sequence[jax.Array]]
"""Runs a program on arrays of ``compat.cpu_device()``."""


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
        inputs, outputs = list(map(Input.of, load.input_values(program))), program.types()
        run, stored = self._compiled(program, source, inputs, outputs)
        if self.kernels == "tpu_interpret":
            run = functools.partial(interpreter_findings.watched, run)
        constants = list(program.constants().values())
        return CpuProgram(program, inputs, outputs, constants, run, stored)

    def _compiled(
        self, program: Program, source: Source, inputs: Sequence[Input], outputs: Sequence[TensorType]
    ) -> tuple[Call, Stored | None]:
        """The program as something to be called, from the store, or compiled and stored; and its place there.

        Without kernels the source says it all, so a program that is in the store is not even traced. What a kernel
        computes is known only when it has been traced; such a program is looked up by its lowered form.
        """
        if self.store is None:
            return _call(_lowered(program, source, inputs, self.kernels).compile(), outputs), None
        lowered = _lowered(program, source, inputs, self.kernels) if source.kernels else None
        kind, text = ("source", source.text) if lowered is None else ("lowered", lowered.as_text())
        stored = Stored(executables.key(kind, [text, repr(inputs), repr(outputs)]), inputs, outputs)
        found = executables.load(self.store, stored)
        if found is not None:
            return found, stored
        compiled = (lowered or _lowered(program, source, inputs, self.kernels)).compile()
        return _call(compiled, outputs), stored if executables.save(self.store, stored.key, compiled) else None

    def remarks(self, program: Program) -> list[Action]:
        return calling_convention.interpreted_calls(program) if self.kernels == "vectorized" else []


class CpuProgram:
    """A compiled program.

    Calling it is thread-safe: it holds no state but the compiled code, the program's constants, and arrays over the
    places in memory where its arguments lay.
    """

    def __init__(
        self,
        interface: Interface,
        inputs: Sequence[Input],
        outputs: Sequence[TensorType],
        constants: Sequence[torch.Tensor],
        run: Call,
        stored: Stored | None = None,
    ) -> None:
        """
        Args:
            interface: how the program is called.
            inputs: what the executable takes: the program's inputs, then constants.
            outputs: the types of what it gives: results, then values of mutated arguments.
            constants: see ``inputs``.
            run: calls the executable.
            stored: its place in a store.
        """
        self.interface, self.run, self.stored = interface, run, stored
        self.imports = Imports(inputs[: len(interface.inputs)])
        self.constants = list(constants)
        self.constant_arrays = Imports(inputs[len(interface.inputs) :]).take(self.constants)
        computed = [spec for spec in interface.signature.outputs if spec.is_computed]
        self.computes_all = len(computed) == len(interface.signature.outputs) == interface.signature.returned
        self.results = [_Result(spec, type_) for spec, type_ in zip(computed, outputs, strict=False)]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, with the strides eager gives them. Mutated arguments have been written back to.
        """
        forks.refuse_after_fork()
        if self.interface.drawn:
            arguments = self.interface.all_arguments(arguments)
        signature = self.interface.signature
        given = [arguments[position] for position in self.interface.inputs]
        computed = self.execute(given)
        tensors = [result.of(array) for result, array in zip(self.results, computed, strict=False)]
        if signature.mutated:
            with torch.no_grad():
                new = _new_values(computed[len(tensors) :], given)
                for position, value in zip(signature.mutated, new, strict=True):
                    arguments[position].copy_(value)
        if self.computes_all:
            return tensors
        return calling_convention.results(signature, arguments, tensors)

    def execute(self, given: Sequence[torch.Tensor]) -> Sequence[jax.Array]:
        """What the executable computes of the program's inputs: results, then values of mutated arguments.

        All is there when this returns: inputs that are freed would be read too late.
        """
        computed = self.run(self.imports.take(given) + self.constant_arrays)
        for array in computed:
            array.block_until_ready()
        return computed


class _Result:
    """How a tensor is made of one that a program computed: with eager's strides, in memory of its own.

    What only a backward gets stays where XLA put it.
    """

    SMALL = 1 << 16  # bytes that are copied in less time than torch takes to see another's memory

    def __init__(self, spec: Output, type_: TensorType) -> None:
        assert spec.stride is not None
        self.shape, self.stride, self.dtype, self.nbytes = spec.shape, spec.stride, type_.element.torch, type_.nbytes
        self.is_dense = dense_order(spec.shape, spec.stride) is not None
        self.stays = spec.is_saved and self.is_dense and self.nbytes > self.SMALL

    def of(self, array: jax.Array) -> torch.Tensor:
        """The tensor; the array has its elements in the order in which they lie in memory."""
        if self.stays:
            return arrays.borrowed(array).as_strided(self.shape, self.stride)
        if not self.is_dense:
            return calling_convention.strided_copy(arrays.to_torch(array), self.stride)
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        arrays.copy_into(tensor, array, self.nbytes)
        return tensor


def _new_values(values: Sequence[jax.Array], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """New values of mutated arguments, to be read while ``values`` live.

    XLA may give an input that is returned unchanged out as the same buffer. Such a value is copied, or it would change
    with the argument that it was.
    """
    taken = {tensor.data_ptr() for tensor in given} if len(values) > 1 else set[int]()
    return [
        arrays.to_torch(value) if value.size and value.unsafe_buffer_pointer() in taken else arrays.borrowed(value)
        for value in values
    ]


def _lowered(program: Program, source: Source, inputs: Sequence[Input], kernels: Execution) -> Any:
    """The program as StableHLO, for ``compat.cpu_device()``: where JAX finds a TPU or GPU, that is its default."""
    device = compat.cpu_device()
    sharding = jax.sharding.SingleDeviceSharding(device)
    function = load.load(program, source, kernels)

    def of_memory(*given: jax.Array) -> Any:
        return function(*(input_.logical(array) for input_, array in zip(inputs, given, strict=True)))

    of_memory.__name__ = program.name
    with compat.enable_x64(True), jax.default_device(device):
        return jax.jit(of_memory, keep_unused=True).lower(*(input_.spec(sharding) for input_ in inputs))


def _call(compiled: Any, types: Sequence[TensorType]) -> Call:
    """Calls what JAX compiled: directly, where arrays are all that it needs."""
    return compat.direct_call(compiled, types) or functools.partial(_call_by_jax, compiled)


def _call_by_jax(compiled: Any, given: Sequence[jax.Array]) -> Sequence[jax.Array]:
    with compat.enable_x64(True):
        return compiled(*given)
