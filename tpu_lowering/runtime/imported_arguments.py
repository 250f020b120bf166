"""Arguments as JAX arrays, as they lie in memory: one is made for a place, not for every call."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.ir import arrays
from tpu_lowering.ir.programs import dense_order
from tpu_lowering.ir.types import TensorType

PLACES = 8
"""For one argument: parameters stay where they are, and memory that is freed is soon given out again."""


@dataclasses.dataclass(frozen=True)
class Input:
    """What an executable takes for an argument: the dense memory of a tensor, in the order of its elements there.

    Attributes:
        type: of the array; its dimensions are the tensor's in storage order.
        order: the tensor's dimensions in storage order, outermost first.
        stride: the tensor's strides. One with others is copied.
    """

    type: TensorType
    order: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, value: torch.Tensor) -> Input:
        """The input for tensors laid out as one, fake or real; row-major for one that is not dense."""
        type_ = TensorType.of(value)
        order = dense_order(value.shape, value.stride()) or tuple(range(value.ndim))
        inside = [1]
        for dim in reversed(order):
            inside.append(inside[-1] * max(1, type_.shape[dim]))
        strides = dict(zip(reversed(order), inside, strict=False))
        stored = TensorType(type_.element, tuple(type_.shape[dim] for dim in order))
        return cls(stored, order, tuple(strides[dim] for dim in range(value.ndim)))

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's memory is laid out as the input, and holds the tensor's values."""
        return tensor.stride() == self.stride and not tensor.is_neg() and not tensor.is_conj()

    def spec(self, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
        """The array's type, as JAX lowers for it."""
        return jax.ShapeDtypeStruct(self.type.shape, self.type.dtype, sharding=sharding)

    def logical(self, array: Any) -> Any:
        """The array with dimensions in the tensor's order, while JAX traces."""
        return jax.numpy.transpose(array, [self.order.index(dim) for dim in range(len(self.order))])

    def stored(self, array: Any) -> Any:
        """The opposite of ``logical``."""
        return jax.numpy.transpose(array, self.order)


class Places:
    """Arrays for one kind of input, over the places where arguments of a program lay.

    Attributes:
        input: the kind.
        count: how many arguments are of it.
        seen: addresses that an argument lay at.
        known: arrays by address, of those that one lay at twice.
    """

    def __init__(self, input_: Input, device: Any = None) -> None:
        self.input, self.count = input_, 0
        self.seen: set[int] = set()
        self.known: dict[int, jax.Array] = {}
        self.arrays = compat.CpuArrays(input_.type.shape, input_.type.dtype, device)
        self._bytes = ctypes.c_char * input_.type.nbytes

    def make(self, tensor: torch.Tensor) -> jax.Array:
        """An array with the contents of a tensor."""
        array, place = self.over(tensor), tensor.data_ptr()
        if self.input.type.nbytes and array.unsafe_buffer_pointer() == place:
            places = self.known if place in self.seen else self.seen
            if len(places) >= PLACES * self.count:
                places.clear()
            if places is self.known:
                self.known[place] = compat.made_to_stay(self.over, tensor)
            else:
                self.seen.add(place)
        return array

    def over(self, tensor: torch.Tensor) -> jax.Array:
        """An array over a tensor's memory, or over that of a copy, which it holds."""
        place, type_ = tensor.data_ptr(), self.input.type
        if not type_.nbytes:
            return self.arrays.over(np.zeros(type_.shape, type_.dtype))
        if not self.input.fits(tensor):
            tensor = arrays.row_major(tensor.detach().permute(self.input.order))
        memory = self.memory_at(tensor.data_ptr())
        if tensor.data_ptr() != place:
            memory.tensor = tensor
        return self.arrays.over(np.ndarray(type_.shape, type_.dtype, memory))

    def copy(self, tensor: torch.Tensor) -> jax.Array | None:
        """An array with the contents of a tensor that is laid out as the input, in memory of XLA's own; see
        ``compat.CpuArrays``."""
        memory = self.memory_at(tensor.data_ptr())
        return self.arrays.copy(np.ndarray(self.input.type.shape, self.input.type.dtype, memory))

    def memory_at(self, address: int) -> Any:
        """Memory as a buffer of Python's, which holds nothing but what is made an attribute of it."""
        return self._bytes.from_address(address)

    def write_back(self, tensor: torch.Tensor, value: jax.Array) -> None:
        """Writes a value, in storage order, to an argument."""
        with torch.no_grad():
            tensor.permute(self.input.order).copy_(arrays.borrowed(value))


class Imports:
    """The arrays of a program's arguments.

    A kept array holds nothing: it is read in calls alone whose argument lies, alive, at that place, so an update in
    place is seen. Where an argument is laid out otherwise, or XLA copied it, an array is made for each call. Threads
    may share all this.
    """

    def __init__(self, inputs: Sequence[Input], device: Any = None) -> None:
        kinds = {input_: Places(input_, device) for input_ in inputs}
        self.places = [kinds[input_] for input_ in inputs]
        for places in self.places:
            places.count += 1

    def take(self, tensors: Sequence[torch.Tensor]) -> list[jax.Array]:
        """The arrays of a call's arguments, to be read while these live."""
        found: list[jax.Array] = []
        for places, tensor in zip(self.places, tensors, strict=True):
            array = places.known.get(tensor.data_ptr())
            if array is None or not places.input.fits(tensor):
                array = places.make(tensor)
            found.append(array)
        return found
