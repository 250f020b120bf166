"""Whether views of one memory share elements: exact, by the arithmetic that NumPy has for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

WORK = 1_000_000  # candidates that are looked at before views count as sharing elements
START = 1 << 40  # an address that nothing is read at


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor lie in its memory.

    Attributes:
        shape: sizes.
        stride: strides, in bytes.
        offset: of the first element, in bytes.
        itemsize: bytes of an element.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    itemsize: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Layout:
        """The layout of a tensor, fake or real, whose sizes are numbers."""
        size = tensor.element_size()
        stride = tuple(step * size for step in tensor.stride())
        return cls(tuple(tensor.shape), stride, int(tensor.storage_offset()) * size, size)

    @property
    def __array_interface__(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "strides": self.stride,
            "data": (START + self.offset, False),
            "typestr": f"|V{self.itemsize}",
            "version": 3,
        }


def share_elements(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors share a byte, if they are of one memory; True where that is too hard to tell."""
    work: Any = WORK  # NumPy types it as one of its two names for "no bound"
    try:
        return bool(np.shares_memory(_array(a), _array(b), max_work=work))
    except np.exceptions.TooHardError:
        return True


def repeats_elements(tensor: torch.Tensor) -> bool:
    """Whether a tensor has one element in several places, as torch refuses it where it writes: an expanded one."""
    if tensor.numel() == 0:
        return False
    return any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _array(tensor: torch.Tensor) -> npt.NDArray[np.void]:
    """An array of a tensor's layout at a made-up address; it must not be read."""
    return np.asarray(Layout.of(tensor))
