"""Arguments as JAX arrays: parameters and buffers are imported once, not for every call."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import torch

from tpu_lowering.ir import arrays


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A tensor that was seen in a slot, and its array if it was seen twice in a row."""

    tensor: weakref.ref[torch.Tensor]
    place: Hashable
    array: jax.Array | None


class Imports:
    """The arrays of a program's arguments, one slot each.

    A tensor that comes a second time in a row, at the same place in memory, is a parameter or a buffer: its array is
    kept as long as the tensor lives. The array shares the tensor's memory, so an update in place is seen; where JAX
    had to copy, nothing is kept. Slots are replaced whole, so that threads may share them.
    """

    def __init__(self, count: int) -> None:
        self.slots: list[_Kept | None] = [None] * count

    def take(self, tensors: Sequence[Any]) -> list[Any]:
        """The arrays of a call's arguments, for that call alone; the caller holds ``compat.enable_x64(True)``."""
        return [self._take(slot, tensor) for slot, tensor in enumerate(tensors)]

    def _take(self, slot: int, tensor: torch.Tensor) -> Any:
        kept = self.slots[slot]
        if kept is None or kept.tensor() is not tensor:
            self.slots[slot] = _Kept(weakref.ref(tensor), None, None)
            return arrays.to_numpy(tensor) if arrays.is_small(tensor) else arrays.to_jax(tensor)
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if kept.array is not None and kept.place == place:
            return kept.array
        array = arrays.to_jax(tensor)
        if tensor.numel() and array.unsafe_buffer_pointer() == tensor.data_ptr():
            slots = self.slots

            def forget(_: weakref.ref[torch.Tensor]) -> None:
                slots[slot] = None

            self.slots[slot] = _Kept(weakref.ref(tensor, forget), place, array)
        return array
