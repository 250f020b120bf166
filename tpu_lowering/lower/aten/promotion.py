"""Type promotion as torch defines it, for JAX arrays and Python scalars.

The result's own dtype is known from the graph (``out``), so arithmetic needs only the dtype to compute
in. Operators whose result is a bool need the promoted dtype of their operands: ``result_type``.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType, element_type
from tpu_lowering.session import kept

Scalar = bool | int | float | complex

FLOAT8 = (np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.float8_e5m2))

_NARROW_FLOATS = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """NumPy's dtype of a torch dtype.

    Raises:
        TypeError: JAX has no such type.
    """
    element = element_type(dtype)
    if element is None:
        raise TypeError(f"expected a dtype that JAX has too, got {dtype}")
    return element.numpy


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype eager torch computes in: float32 for the narrower floats, otherwise ``dtype`` itself."""
    element = element_type(dtype)
    return np.dtype(np.float32) if element is not None and element.torch in _NARROW_FLOATS else dtype


def exact_dtype(dtype: np.dtype[Any], *values: Any) -> np.dtype[Any]:
    """The dtype to compute a sum, difference, product or extreme of two values in, for a result of ``dtype``: as
    ``compute_dtype``, but bfloat16 where both values have it or are scalars that it holds.

    Source: rounding to 24 bits and then to 8 is rounding to 8, since 24 >= 2 * 8 + 2 (Figueroa, "When is double
    rounding innocuous?", 1995); the bits are those of float32, without conversions that a TPU would pay for.
    """
    return dtype if dtype == jnp.bfloat16 and all(_is_bfloat16(value) for value in values) else compute_dtype(dtype)


def _is_bfloat16(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return float(np.float32(value).astype(jnp.bfloat16)) == value
    return not isinstance(value, complex) and value.dtype == jnp.bfloat16


def cast(value: Any, dtype: np.dtype[Any]) -> jax.Array:
    """An array or a Python scalar as a strongly typed array of ``dtype`` (complex to real drops the rest).

    Truth as 1.0 and 0.0 is a choice between constants: of a product with a converted bool XLA's simplifier makes a
    choice of the other factor or 0, which forgets that NaN and infinity times 0 are NaN, and that -1 times 0 is -0.0.
    Float8 is rounded from float32, whatever the value was, as torch does it.
    """
    if isinstance(value, bool | int | float | complex):
        number = np.asarray(value)
        if dtype in FLOAT8:
            number = np.clip(np.float32(number), *_held(dtype))
        return jnp.asarray(number.astype(dtype))
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, np.complexfloating):
        value = (value != 0) if dtype == np.bool_ else jnp.real(value)
    if value.dtype == np.bool_ and jnp.issubdtype(dtype, np.inexact):
        return jnp.where(value, jnp.ones((), dtype), jnp.zeros((), dtype))
    if dtype in FLOAT8 and value.dtype != dtype:
        value = jnp.clip(jax.lax.convert_element_type(value, np.float32), *_held(dtype))
    return jax.lax.convert_element_type(value, dtype)


@kept(2, "today's torch makes the largest number of a larger one where a type has no infinity, torch 2.9 makes NaN")
def _held(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The bounds that eager holds numbers to before it rounds them to this float8."""
    element = element_type(dtype)
    assert element is not None, dtype
    with compat.disable_current_modes():
        largest = torch.tensor(math.inf).to(element.torch).float().abs().item()
    bound = math.inf if math.isnan(largest) else largest
    return -bound, bound


def widen(value: Any) -> jax.Array:
    """``value`` in the dtype that its own arithmetic is computed in."""
    return cast(value, compute_dtype(value.dtype))


def finish(value: jax.Array, out: TensorType) -> jax.Array:
    """``value`` with exactly the dtype and shape of ``out``; the number of elements must agree."""
    return cast(value, out.dtype).reshape(out.shape)


def result_type(*values: Any) -> np.dtype[Any]:
    """The dtype torch promotes arrays and Python scalars to.

    Arrays with dimensions outrank 0-d arrays, which outrank scalars: a lower rank matters only if its
    category (bool < integer < floating < complex) is higher. Source: ``c10::result_type``.
    """
    ranks: list[torch.dtype | None] = [None, None, None]
    for value in values:
        rank, dtype = _rank_and_dtype(value)
        known = ranks[rank]
        ranks[rank] = dtype if known is None else torch.promote_types(known, dtype)
    result = ranks[2]
    for lower in (ranks[1], ranks[0]):
        result = _outrank(result, lower)
    assert result is not None, "result_type of nothing"
    return numpy_dtype(result)


def _rank_and_dtype(value: Any) -> tuple[int, torch.dtype]:
    """The rank (2: dimensions, 1: 0-d, 0: scalar) and torch dtype of one operand."""
    if isinstance(value, bool):
        return 0, torch.bool
    if isinstance(value, int):
        return 0, torch.int64
    if isinstance(value, float):
        return 0, torch.get_default_dtype()
    if isinstance(value, complex):
        return 0, torch.get_default_dtype().to_complex()
    element = element_type(value.dtype)
    assert element is not None, value.dtype
    return (2 if value.ndim else 1), element.torch


def _outrank(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    """Combines the dtype of a higher rank with that of a lower one."""
    if higher is None or lower is None:
        return higher if lower is None else lower
    if _category(lower) <= _category(higher):
        return higher
    if higher.is_floating_point:
        return higher.to_complex()
    return lower


def _category(dtype: torch.dtype) -> int:
    if dtype.is_complex:
        return 3
    return 2 if dtype.is_floating_point else int(dtype != torch.bool)
