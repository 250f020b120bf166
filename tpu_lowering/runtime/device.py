"""Programs on any JAX device, called with torch tensors on the CPU: ``options={"device": "tpu:0"}``.

What a call moves:

==========================  ========================================================================================
parameters, buffers         in, once; again when they were updated (see ``runtime.device_memory``)
other arguments             in, each call, unless the same tensor with the same values comes again; those that a
                            backward is given stay until the forward is called again
results                     out, each call, as CPU tensors of their own
mutated arguments           out, each call; the new value stays on the device and is not moved in by the next call
results of a forward that   out, and they stay on the device as long as the tensor lives: its backward does not move
records gradients           them in
==========================  ========================================================================================

All of a call's transfers in, the program and all transfers out are enqueued before anything is waited for. A call
returns when its results have arrived: a CPU tensor cannot say that its values are still to come.

The new value of a mutated argument goes back at every call, for the same reason: torch may read it at any time, and
nobody would tell us. The buffer on the device is donated, so it is updated in place there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat, errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips, forks
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels import jaxprs
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.device_memory import Device, DeviceMemory, Slots, fetch, is_static, memory_of, put, write_back


def find_device(name: str) -> Device:
    """A device of this process by its name, ``"tpu:1"``, or ``"tpu"`` for the first.

    Raises:
        TpuLoweringError: TL104 if JAX has no such device.
    """
    platform, _, index = name.partition(":")
    try:
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, IndexError) as error:
        existing = ", ".join(device_names())
        raise errors.refuse(
            "TL104",
            f"JAX device {name!r}",
            f"expected one of {existing}, got {name!r}",
            "choose one of them, or make JAX find the device: install its plugin (libtpu for a TPU), and let "
            "JAX_PLATFORMS name the platform; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N CPU devices",
        ) from error


def device_names() -> list[str]:
    """The devices of this process that ``options["device"]`` can name: those of JAX's default platform and the CPU."""
    found = [*jax.local_devices(), *_cpu_devices()]
    by_platform: dict[str, list[Device]] = {}
    for device in dict.fromkeys(found):
        by_platform.setdefault(device.platform, []).append(device)
    return [f"{platform}:{index}" for platform, devices in by_platform.items() for index in range(len(devices))]


def _cpu_devices() -> list[Device]:
    try:
        return jax.local_devices(backend="cpu")
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return []


class DeviceRuntime:
    """A JAX device, for torch tensors on the CPU. Kernels run as Mosaic kernels on a TPU, elsewhere as on the CPU.

    Made while AOTAutograd compiles the graph that it is for.

    Attributes:
        device: the device.
        in_backward: whether the graph is a backward.
        keeps_results: whether the graph is a forward that records gradients.
        advanced: positions of arguments whose version counter AOTAutograd advances before each call.
    """

    def __init__(self, device: str, kind: str = "inference", kernels: Execution = "vectorized") -> None:
        self.name, self.device = device, find_device(device)
        self.on_tpu = self.device.platform == "tpu"
        self.kernels: Execution = "mosaic" if self.on_tpu else kernels
        self.in_backward, self.keeps_results = kind == "backward", kind == "forward"
        self.advanced = () if self.in_backward else compat.versions_advanced()

    @property
    def chip(self) -> Chip:
        return chips.of_device(self.device.device_kind, "JAX") if self.on_tpu else CPU

    def check(self, arguments: Sequence[Any]) -> None:
        calling_convention.check_devices(arguments)

    def remarks(self, program: Program) -> list[Action]:
        return calling_convention.interpreted_calls(program) if self.kernels == "vectorized" else []

    def compile(self, program: Program, source: Source) -> DeviceProgram:
        calling_convention.refuse_mesh(program, f"options['device'] = {self.name!r}")
        return DeviceProgram(program, source, self)


def compile_for(program: Program, source: Source, device: Device, kernels: Execution, chip: Chip = CPU) -> Any:
    """The executable of a program for one device, with the buffers of mutated inputs donated."""
    function = load.load(program, source, kernels)
    scope = jaxprs.kernel_scope([], chip) if chip.is_tpu else contextlib.nullcontext()
    with scope, compat.enable_x64(True):
        sharding = jax.sharding.SingleDeviceSharding(device)
        specs = load.input_specs(program, sharding)
        jitted = jax.jit(function, donate_argnums=program.donated_inputs(), out_shardings=sharding)
        return jitted.lower(*specs).compile()


class DeviceProgram:
    """A compiled program. Calling it is thread-safe: what it holds of arguments is theirs, see ``DeviceMemory``."""

    def __init__(self, program: Program, source: Source, runtime: DeviceRuntime) -> None:
        self.program, self.runtime = program, runtime
        self.memory: DeviceMemory = memory_of(runtime.device)
        ahead = [int(position in runtime.advanced) for position in program.inputs]
        saved = {spec.place.base for spec in program.signature.outputs if spec.place and spec.place.of_argument}
        slots = [slot for slot, position in enumerate(program.inputs) if runtime.keeps_results and position in saved]
        self.slots = Slots(self.memory, ahead, runtime.in_backward, frozenset(slots))
        self.compiled = compile_for(program, source, runtime.device, runtime.kernels, runtime.chip)
        self.donated = program.donated_inputs()
        with compat.enable_x64(True):
            self.constants = [put(value, runtime.device) for value in program.constants().values()]
        self.pointers = frozenset(map(_pointer, self.constants))

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, CPU tensors with the strides eager gives them. Mutated arguments have been written back to.
        """
        forks.refuse_after_fork()
        arguments = self.program.all_arguments(arguments)
        with compat.enable_x64(True):
            with self.memory.lock:
                inputs = self._take(arguments)
                results = self.compiled(*inputs, *self.constants)
                if self.runtime.in_backward:
                    self.memory.backwards += 1
            for result in results:
                result.copy_to_host_async()
            signature = self.program.signature
            computed = len(results) - len(signature.mutated)
            tensors = [fetch(result) for result in results[:computed]]
            for position, array in zip(signature.mutated, results[computed:], strict=True):
                write_back(arguments[position], array)
            with self.memory.lock:
                self._keep_mutated(arguments, inputs, results)
                if self.runtime.keeps_results:
                    self._keep_results(tensors, results)
        return calling_convention.results(signature, arguments, tensors)

    def _take(self, arguments: Sequence[Any]) -> list[jax.Array]:
        """The program's inputs on the device; donated ones belong to this call alone."""
        inputs: list[jax.Array] = []
        for slot, position in enumerate(self.program.inputs):
            array, copy = self.slots.take(slot, arguments[position])
            inputs.append(array)
            if slot in self.donated and copy is not None:
                copy.array = None
        for slot in self.donated:
            if sum(other is inputs[slot] for other in inputs) > 1:
                inputs[slot] = inputs[slot].copy()
        return inputs

    def _keep_mutated(
        self, arguments: Sequence[Any], inputs: Sequence[jax.Array], results: Sequence[jax.Array]
    ) -> None:
        """Keeps the new values of mutated arguments, which the arguments hold by now.

        All other copies of their storages are dropped: their tensors may have version counters of their own.
        """
        mutated = self.program.signature.mutated
        lasting = [is_static(arguments[position]) for position in mutated]
        lasting = [any((self.memory.forget(arguments[p]), last)) for p, last in zip(mutated, lasting, strict=True)]
        computed = len(results) - len(mutated)
        # An array that is the buffer of something else as well must not be donated by the next call.
        taken = {_pointer(array) for array in (*inputs, *results[:computed]) if mutated and not array.is_deleted()}
        for position, array, last in zip(mutated, results[computed:], lasting, strict=True):
            if _pointer(array) in taken | self.pointers:
                continue
            taken.add(_pointer(array))
            copy = self.memory.keep(arguments[position], _without_host_copy(array), lasting=last)
            if position in self.program.inputs:
                self.slots.see(self.program.inputs.index(position), arguments[position], copy)

    def _keep_results(self, tensors: Sequence[torch.Tensor], results: Sequence[jax.Array]) -> None:
        """Keeps results as long as they live, those that the caller gets as they left the program."""
        specs = [spec for spec in self.program.signature.outputs if spec.is_computed]
        for spec, tensor, array in zip(specs, tensors, results, strict=False):
            if tensor.numel() and tensor.stride() == spec.stride and tensor.shape == spec.shape:
                self.memory.keep(tensor, _without_host_copy(array), lasting=True)


def _pointer(array: jax.Array) -> int:
    """Where an array lies on its device; an array of no elements is nowhere."""
    return array.unsafe_buffer_pointer() if array.size else id(array)


def _without_host_copy(array: jax.Array) -> jax.Array:
    """The same buffer as another array: an array keeps, as long as it lives, the host memory it was fetched to."""
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, [array])
