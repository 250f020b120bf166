"""Private names of JAX that call its executables on the CPU in few steps: a client, arrays, results."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tpu_lowering import errors
from tpu_lowering.compat.lookup import private
from tpu_lowering.compat.of_jax import enable_x64


@functools.cache
def cpu_device() -> Any:
    """A CPU device that runs a program in the thread that calls it.

    It belongs to a client of our own. JAX's hands each program to another thread, whose waking costs more than a small
    program; its flag for that is one for all of the process. JAX's first CPU device, where a release makes no client.
    """
    why = "programs that run in the thread that calls them"
    try:
        client = private("jaxlib", "jaxlib.xla_client", "make_cpu_client", why)(asynchronous=False)
    except (errors.TpuLoweringError, TypeError):
        return jax.devices("cpu")[0]
    return client.local_devices()[0]


def made_to_stay(make: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    """An array that a program keeps, made in a thread of its own.

    An array holds the code of all functions on the stack that it was made under. Of Dynamo's code the compiled function
    hangs, and of that the program: nothing of them would ever be freed.
    """
    return _maker().submit(make, *arguments).result()


@functools.cache
def _maker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "tpu_lowering")


class CpuArrays:
    """Makes arrays of one type on a device of the CPU: ``cpu_device()``, or that of a ``Cluster``."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: Any = None) -> None:
        self._device = device or cpu_device()
        self._put = _quick_put(self._device)
        self._aval = None if self._put is None else _shaped_array("arrays in the memory of tensors")(shape, dtype)

    def over(self, memory: Any) -> jax.Array:
        """An array in the memory of a NumPy array, which it holds; a copy of it, where XLA cannot take it as it is.

        JAX's public ways, ``device_put`` and DLPack, look at each array for many times as long.
        """
        if self._put is not None:
            return self._put(self._aval, memory)
        with enable_x64(True):
            return jax.device_put(memory, self._device)

    def copy(self, memory: Any) -> jax.Array | None:
        """An array with the contents of a NumPy array, in memory of XLA's own; None in a release that may share it."""
        return None if self._put is None else self._put(self._aval, memory, own=True).block_until_ready()


@functools.cache
def _quick_put(device: Any) -> Any:
    """Makes an array of a type over memory, as ``CpuArrays.over``; None in a release without the names for it."""
    why = "arrays in the memory of tensors"
    try:
        put = private("jaxlib", "jaxlib._jax", "batched_device_put", why)
        semantics = private("jaxlib", "jaxlib._jax", "HostBufferSemantics", why)
        shared, copied = (True, False, semantics.ZERO_COPY), (True, True, semantics.IMMUTABLE_ONLY_DURING_CALL)
        sharding, devices = jax.sharding.SingleDeviceSharding(device), [device]

        def over(aval: Any, memory: Any, own: bool = False) -> Any:
            return put(aval, sharding, [memory], devices, *(copied if own else shared), True)

        over(_shaped_array(why)((), np.dtype(np.float32)), np.zeros((), np.float32))
    except (errors.TpuLoweringError, TypeError, AttributeError):
        return None
    return over


def as_dlpack(array: jax.Array) -> Any:
    """An array's memory as a DLPack capsule, for a reader on the CPU; by the public way in a release without it."""
    return _dlpack_export()(array)


@functools.cache
def _dlpack_export() -> Callable[[jax.Array], Any]:
    try:
        return private("jaxlib", "jaxlib._jax", "buffer_to_dlpack_managed_tensor", "results without a copy")
    except errors.TpuLoweringError:
        return operator.methodcaller("__dlpack__")


class DirectCall:
    """Calls what XLA compiled for a device with arrays of it, without JAX's checks of each."""

    def __init__(self, executable: Any, types: Sequence[Any], device: Any = None) -> None:
        """
        Args:
            executable: the executable.
            types: shape and dtype of each result.
            device: this process's, if it is not ``cpu_device()``.
        """
        self.executable, self._run = executable, executable.execute_sharded
        sharding = jax.sharding.SingleDeviceSharding(device or cpu_device())
        why = "results of programs"
        handler, shaped = private("jaxlib", "jaxlib._jax", "array_result_handler", why), _shaped_array(why)
        self._handlers = [handler(shaped(t.shape, t.dtype), sharding, True, True) for t in types]
        self._arrays = operator.methodcaller("consume_with_handlers", self._handlers)

    def __call__(self, arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
        return self._run(arrays).consume_with_handlers(self._handlers)  # type: ignore[no-any-return]

    def text(self) -> str:
        """The executable as optimised HLO."""
        return self.executable.hlo_modules()[0].to_string()  # type: ignore[no-any-return]

    def into(self, arrays: Sequence[jax.Array], kept: Results) -> Sequence[jax.Array]:
        """Calls it, and puts what it gives into ``kept``, so that an interruption cannot lose it.

        Python looks for signals when a call is over, before its result is anywhere. It does not inside of
        ``list.extend``.
        """
        kept.raw.extend(map(self._run, (arrays,)))
        kept.arrays.extend(map(self._arrays, kept.raw))
        return kept.arrays[0]


@dataclasses.dataclass
class Results:
    """What one call gave.

    Attributes:
        raw: XLA's results, if the executable has run.
        arrays: these as arrays, if they have been made of them.
    """

    raw: list[Any] = dataclasses.field(default_factory=list)
    arrays: list[Sequence[jax.Array]] = dataclasses.field(default_factory=list)

    def recovered(self, call: DirectCall) -> Sequence[jax.Array] | None:
        """The arrays of a call that was interrupted; None if the executable has not run."""
        if self.raw and not self.arrays:
            self.arrays.extend(map(call._arrays, self.raw))
        return self.arrays[0] if self.arrays else None


def direct_call(compiled: Any, types: Sequence[Any], device: Any = None) -> DirectCall | None:
    """Calls a ``jax.stages.Compiled`` with arrays on its device, without JAX's checks of each.

    Args:
        compiled: the executable.
        types: shape and dtype of each result.
        device: this process's, if it is not ``cpu_device()``.

    Returns:
        None for one that needs more than arrays: with calls back into Python, effects, or constants of JAX's.
    """
    unloaded = getattr(compiled._executable, "_unloaded_executable", None)
    if unloaded is None or unloaded.host_callbacks or unloaded.mut is not None or compiled._params.const_args:
        return None
    if unloaded.ordered_effects or unloaded.unordered_effects:
        return None
    return DirectCall(compiled.runtime_executable(), types, device)


def _shaped_array(why: str) -> Any:
    return private("jax", "jax._src.core", "ShapedArray", why)


def aliases(compiled: Any) -> dict[int, int]:
    """For each result of a ``jax.stages.Compiled`` that takes an argument's memory, the argument's position."""
    _, _, head = compiled.as_text().partition("\n")[0].partition("input_output_alias={")
    found = re.findall(r"\{(\d*)\}: \((\d+), \{\}", head.partition(", entry_computation_layout")[0])
    return {int(result or 0): int(argument) for result, argument in found}


def executable_bytes(compiled: Any) -> bytes | None:
    """XLA's serialised form of a ``jax.stages.Compiled``; JAX's own way to write one down pickles.

    None if this executable has no such form; see ``direct_call``.
    """
    if direct_call(compiled, ()) is None:
        return None
    executable = compiled.runtime_executable()
    return bytes(executable.client.serialize_executable(executable))


def executable_from_bytes(data: bytes, types: Sequence[Any]) -> DirectCall:
    """What ``executable_bytes`` wrote, whose results are of ``types``."""
    device = cpu_device()
    devices = private("jaxlib", "jaxlib.xla_client", "DeviceList", "programs compiled by an earlier process")((device,))
    return DirectCall(device.client.deserialize_executable(data, executable_devices=devices), types)
