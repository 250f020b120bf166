"""Types of values: element type and shape, printed and written the way generated code writes them.

``f32[256, 1024]`` is a 256 by 1024 tensor of float32; ``i64[()]`` is a 0-d int64 tensor.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class ElementType:
    """One element type and its names in torch and NumPy (JAX uses NumPy's dtypes)."""

    name: str
    torch: torch.dtype
    numpy: np.dtype[Any]

    def __getitem__(self, shape: int | tuple[int, ...]) -> TensorType:
        return TensorType(self, (shape,) if isinstance(shape, int) else tuple(shape))

    def __repr__(self) -> str:
        return self.name

    @property
    def is_floating(self) -> bool:
        return self.torch.is_floating_point

    @property
    def is_complex(self) -> bool:
        return self.torch.is_complex

    @property
    def is_64bit(self) -> bool:
        """Whether JAX holds this type only under its x64 mode."""
        return self.name in ("f64", "i64", "u64", "c128")


f16 = ElementType("f16", torch.float16, np.dtype(np.float16))
bf16 = ElementType("bf16", torch.bfloat16, np.dtype(ml_dtypes.bfloat16))
f32 = ElementType("f32", torch.float32, np.dtype(np.float32))
f64 = ElementType("f64", torch.float64, np.dtype(np.float64))
f8e4m3fn = ElementType("f8e4m3fn", torch.float8_e4m3fn, np.dtype(ml_dtypes.float8_e4m3fn))
f8e5m2 = ElementType("f8e5m2", torch.float8_e5m2, np.dtype(ml_dtypes.float8_e5m2))
i8 = ElementType("i8", torch.int8, np.dtype(np.int8))
i16 = ElementType("i16", torch.int16, np.dtype(np.int16))
i32 = ElementType("i32", torch.int32, np.dtype(np.int32))
i64 = ElementType("i64", torch.int64, np.dtype(np.int64))
u8 = ElementType("u8", torch.uint8, np.dtype(np.uint8))
u16 = ElementType("u16", torch.uint16, np.dtype(np.uint16))
u32 = ElementType("u32", torch.uint32, np.dtype(np.uint32))
u64 = ElementType("u64", torch.uint64, np.dtype(np.uint64))
pred = ElementType("pred", torch.bool, np.dtype(np.bool_))
c64 = ElementType("c64", torch.complex64, np.dtype(np.complex64))
c128 = ElementType("c128", torch.complex128, np.dtype(np.complex128))

ELEMENT_TYPES: tuple[ElementType, ...] = (
    f16, bf16, f32, f64, f8e4m3fn, f8e5m2,
    i8, i16, i32, i64, u8, u16, u32, u64, pred, c64, c128,
)  # fmt: skip

_BY_TORCH = {element.torch: element for element in ELEMENT_TYPES}
_BY_NUMPY = {element.numpy: element for element in ELEMENT_TYPES}


def element_type(dtype: torch.dtype | np.dtype[Any]) -> ElementType | None:
    """The element type of a torch or NumPy/JAX dtype, or None where JAX has no such type."""
    if isinstance(dtype, torch.dtype):
        return _BY_TORCH.get(dtype)
    return _BY_NUMPY.get(np.dtype(dtype))


@dataclasses.dataclass(frozen=True)
class TensorType:
    """Element type and concrete shape of a value. Strides are not part of a value in this graph."""

    element: ElementType
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for size in self.shape:
            if type(size) is not int or size < 0:
                raise ValueError(f"expected a shape of non-negative ints, got {self.shape!r}")

    @staticmethod
    def of(value: Any) -> TensorType:
        """The type of a torch tensor (fake or real) or of a JAX/NumPy array.

        Raises:
            TypeError: the dtype has no counterpart in JAX.
        """
        element = element_type(value.dtype)
        if element is None:
            raise TypeError(f"expected a dtype that JAX has too, got {value.dtype}")
        return TensorType(element, tuple(int(size) for size in value.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy/JAX dtype of the elements."""
        return self.element.numpy

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense, unpadded value."""
        return self.size * self.element.numpy.itemsize

    def __repr__(self) -> str:
        inside = ", ".join(map(str, self.shape)) if self.shape else "()"
        return f"{self.element.name}[{inside}]"
