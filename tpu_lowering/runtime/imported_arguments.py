"""Arguments as JAX arrays: one is made for a place in memory, not for every call."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import torch

from tpu_lowering import compat
from tpu_lowering.ir import arrays
from tpu_lowering.ir.types import TensorType

PLACES = 4
"""Of one argument: parameters stay where they are, and memory that is freed is soon given out again."""


class _Slot:
    """One argument of a program, and arrays over the places where it lay."""

    def __init__(self, type_: TensorType) -> None:
        self.type = type_
        self.arrays = compat.CpuArrays(type_.shape, type_.dtype)
        self.places: dict[int, jax.Array] = {}

    def take(self, tensor: torch.Tensor) -> jax.Array:
        place, tensor = tensor.data_ptr(), arrays.row_major(tensor)
        stays = tensor.data_ptr() == place
        array = self.arrays.over(arrays.memory(tensor, self.type, hold=not stays))
        if stays and self.type.nbytes and array.unsafe_buffer_pointer() == place:
            if len(self.places) == PLACES:
                self.places = {}
            self.places[place] = array
        return array


class Imports:
    """The arrays of a program's arguments, one slot each.

    A kept array holds nothing: it is read in calls alone whose argument lies, alive, at that place, so an update in
    place is seen. Where an argument is not row-major, or XLA copied it, an array is made for each call. Threads may
    share the slots.
    """

    def __init__(self, types: Sequence[TensorType]) -> None:
        self.slots = [_Slot(type_) for type_ in types]

    def take(self, tensors: Sequence[torch.Tensor]) -> list[jax.Array]:
        """The arrays of a call's arguments, to be read while these live."""
        found: list[jax.Array] = []
        for slot, tensor in zip(self.slots, tensors, strict=False):
            array = slot.places.get(tensor.data_ptr())
            if array is None or not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
                array = slot.take(tensor)
            found.append(array)
        return found
