"""What of torch's memory is on a JAX device, or on a mesh of them: arrays that stay there, and the ways in and out.

The host is the truth, and holds whole tensors. An array on the device stands for a tensor as long as three things hold:
the tensor's storage is the same object, its place in it is the same, and torch's version counter is where it was.
Whatever breaks one of them (an update in place, ``tensor.data = ...``, a resize) moves the tensor again.

Two kinds of updates leave the counter alone: fused optimizers, and writes through ``tensor.data``, NumPy or another
process. The first are met here: after a backward ran on the device, parameters that record gradients move again. The
second cannot be seen; ``torch.autograd.graph.increment_version(tensor)`` announces them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import threading
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
import torch

from tpu_lowering import compat, errors
from tpu_lowering.ir.types import TensorType
from tpu_lowering.runtime.places import Place


def on_host(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A NumPy array of the shape and dtype of a dense row-major CPU tensor, in the tensor's memory, to be read.

    It holds the memory, and does not keep the tensor from being resized, as ``tensor.numpy()`` would.
    """
    type_ = TensorType.of(tensor)
    if tensor.numel() == 0:
        return np.empty(type_.shape, type_.dtype)
    return np.from_dlpack(tensor.detach().reshape(-1).view(torch.uint8)).view(type_.dtype).reshape(type_.shape)


def put(tensor: torch.Tensor, place: Place, sharding: jax.sharding.Sharding) -> jax.Array:
    """Starts to move a CPU tensor to a place; its memory must stay as it is until the array is ready.

    The caller holds ``compat.enable_x64(True)``. CPU devices take NumPy's memory for their own, so it is copied for
    them: an update of the tensor would otherwise show in an array that stands for the old values. Where processes share
    a mesh, each moves its own devices' part of the tensor, which all of them have.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if place.device.platform == "cpu":
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    host = on_host(tensor.contiguous())
    if place.is_shared:
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
    return jax.device_put(host, sharding)


def fetch(array: jax.Array, order: Sequence[int] | None = None) -> torch.Tensor:
    """A tensor in memory of its own; waits until the array has arrived, see ``jax.Array.copy_to_host_async``.

    With ``order`` it is a row-major tensor of the array's dimensions in that order.
    """
    tensor = unfilled(array)
    _fill(tensor, array)
    return tensor if order is None else tensor.permute(*order).contiguous()


def unfilled(array: jax.Array, order: Sequence[int] | None = None) -> torch.Tensor:
    """As ``fetch``, but of undefined memory."""
    type_ = TensorType.of(array)
    shape = type_.shape if order is None else [type_.shape[dimension] for dimension in order]
    return torch.empty(shape, dtype=type_.element.torch)


def _fill(tensor: torch.Tensor, array: jax.Array) -> None:
    """Copies an array into a dense row-major CPU tensor of its type."""
    host = np.ascontiguousarray(np.asarray(array))
    if host.nbytes:
        ctypes.memmove(tensor.data_ptr(), host.ctypes.data, host.nbytes)


def write_back(tensor: torch.Tensor, array: jax.Array) -> None:
    """Gives a tensor the values of an array, without a copy on the way if it is dense and row-major."""
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        _fill(tensor, array)
        torch.autograd.graph.increment_version(tensor)
    else:
        with torch.no_grad():
            tensor.copy_(fetch(array))


@dataclasses.dataclass(eq=False)
class Copy:
    """A tensor's values on a device.

    Attributes:
        array: the values; None once the array was donated.
        version: torch's version counter when they were equal.
        backwards: how many backwards the device had run then.
    """

    array: jax.Array | None
    version: int
    backwards: int


class DeviceMemory:
    """The copies on one device or mesh, found by storage, place in it and sharding; all programs there share them.

    A copy lives as long as whoever asked for it holds it, or, if it is ``lasting``, as long as the tensor's storage.
    ``lock`` is held from looking copies up until the program that uses them is enqueued, so that no other thread
    donates them in between.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.lock = threading.RLock()
        self.backwards = 0
        self._copies: weakref.WeakKeyDictionary[torch.UntypedStorage, weakref.WeakValueDictionary[Hashable, Copy]] = (
            weakref.WeakKeyDictionary()
        )
        self._lasting: weakref.WeakKeyDictionary[torch.UntypedStorage, dict[Hashable, Copy]] = (
            weakref.WeakKeyDictionary()
        )

    def find(
        self, tensor: torch.Tensor, sharding: jax.sharding.Sharding, ahead: int = 0, in_backward: bool = False
    ) -> Copy | None:
        """The valid copy of a tensor, or None.

        Args:
            tensor: a CPU tensor.
            sharding: how the copy lies.
            ahead: by how much AOTAutograd has advanced the version counter for a write that is still to come.
            in_backward: whether a backward asks: its parameters are those that its forward used.
        """
        copies = self._copies.get(tensor.untyped_storage())
        copy = copies.get((place_of(tensor), sharding)) if copies is not None else None
        if (
            copy is None
            or copy.array is None
            or tensor.is_inference()
            or copy.version != compat.version_of(tensor) - ahead
        ):
            return None
        trained = tensor.requires_grad and tensor.is_leaf and not in_backward
        return None if trained and copy.backwards != self.backwards else copy

    def keep(
        self,
        tensor: torch.Tensor,
        array: jax.Array,
        sharding: jax.sharding.Sharding,
        ahead: int = 0,
        lasting: bool = False,
    ) -> Copy | None:
        """Enters an array as the copy of a tensor, in place of an older one that lies alike.

        Returns:
            The copy; None for an inference tensor, which has no version counter.
        """
        if tensor.is_inference():
            return None
        storage, place = tensor.untyped_storage(), (place_of(tensor), sharding)
        copy = Copy(array, compat.version_of(tensor) - ahead, self.backwards)
        self._copies.setdefault(storage, weakref.WeakValueDictionary())[place] = copy
        if lasting:
            self._lasting.setdefault(storage, {})[place] = copy
        return copy

    def forget(self, tensor: torch.Tensor) -> bool:
        """Drops every copy of a tensor's storage, whatever part; returns whether one of them was lasting."""
        storage = tensor.untyped_storage()
        for copy in list(self._copies.pop(storage, {}).values()):
            copy.array = None
        return bool(self._lasting.pop(storage, None))


def place_of(tensor: torch.Tensor) -> Hashable:
    """Where a tensor lies in its storage, and as what; a storage whose memory is replaced gives another place."""
    return (
        tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
    )  # fmt: skip


_lock = threading.Lock()
_memories: dict[Hashable, DeviceMemory] = {}


def memory_of(place: Place) -> DeviceMemory:
    """The one ``DeviceMemory`` of a place."""
    with _lock:
        return _memories.setdefault(place.key, DeviceMemory(place))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A tensor that was seen in a slot, by its storage and place, and its copy if it was kept."""

    storage: weakref.ref[torch.UntypedStorage]
    place: Hashable
    copy: Copy | None


class Slots:
    """The arguments of a program on a device, one slot each.

    Parameters and buffers are kept at once and as long as they live. Any other tensor is kept when it comes a second
    time in a row, was written by the program, or is saved for a backward, until another tensor takes its slot: the
    memory that plain arguments take is bounded by one copy a slot.

    Attributes:
        shardings: how the array of each slot lies.
        ahead: for each slot, by how much its version counter is advanced before each call.
        saved: slots of the arguments that a backward is given.
        left: for each slot, whether a forward left its values on the devices alone.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        shardings: Sequence[jax.sharding.Sharding],
        ahead: Sequence[int],
        in_backward: bool,
        saved: frozenset[int] = frozenset(),
        left: Sequence[bool] = (),
    ) -> None:
        self.memory, self.shardings, self.ahead = memory, shardings, ahead
        self.in_backward, self.saved, self.left = in_backward, saved, left
        self.seen: list[_Seen | None] = [None] * len(ahead)

    def take(self, slot: int, tensor: torch.Tensor) -> tuple[jax.Array, Copy | None]:
        """The array of a call's argument, moved if it is not on the device; the caller holds ``memory.lock``.

        Raises:
            TpuLoweringError: TL718 for a value that was left on the devices, and is not there.
        """
        storage, place = tensor.untyped_storage(), place_of(tensor)
        ahead, sharding = self.ahead[slot], self.shardings[slot]
        last = self.seen[slot]
        again = last is not None and last.storage() is storage and last.place == place
        copy = self.memory.find(tensor, sharding, ahead, self.in_backward)
        if copy is not None:
            array = copy.array
            assert array is not None
        elif self.left and self.left[slot]:
            raise _lost(tensor)
        else:
            array = put(tensor, self.memory.place, sharding)
            lasting = is_static(tensor)
            if lasting or again or slot in self.saved:
                copy = self.memory.keep(tensor, array, sharding, ahead, lasting)
        self.see(slot, tensor, copy)
        return array, copy

    def see(self, slot: int, tensor: torch.Tensor, copy: Copy | None) -> None:
        """Remembers the tensor of a slot, and holds its copy."""
        seen = self.seen

        def free(_: weakref.ref[torch.UntypedStorage]) -> None:
            seen[slot] = None

        seen[slot] = _Seen(weakref.ref(tensor.untyped_storage(), free), place_of(tensor), copy)


def _lost(tensor: torch.Tensor) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL718",
        f"{tensor.dtype} {list(tensor.shape)} that a forward saved",
        "expected the tensor that the forward gave, because its values are on the devices of several processes alone, "
        "got another",
        "leave out hooks that pack or copy saved tensors (torch.autograd.graph.saved_tensors_hooks, save_on_cpu)",
    )


def is_static(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a parameter, or a buffer of a module that Dynamo traced."""
    return isinstance(tensor, torch.nn.Parameter) or compat.is_static_input(tensor)
