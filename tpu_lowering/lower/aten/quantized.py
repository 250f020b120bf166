"""Matrix products with operands of 8 or 4 bits, and the scales that make numbers of them.

Operands go into the product as narrow as they are: XLA widens them on their way into the MXU, so memory holds them, and
gives them, in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import FLOAT8, cast, compute_dtype, finish, widen
from tpu_lowering.lower.table import Limit, lowers
from tpu_lowering.session import kept

aten = compat.aten


def _scaled(self: Any, mat2: Any, scale_a: Any, scale_b: Any, bias: Any) -> jax.Array:
    """float8 [m, k] @ float8 [k, n], times a scale for each row or for all, and for each column or for all, plus a
    bias [n]: float32 [m, n]."""
    both = self.dtype == mat2.dtype
    x, y = (self, mat2) if both else (cast(self, jnp.bfloat16), cast(mat2, jnp.bfloat16))  # which holds either
    result = jnp.matmul(x, y, preferred_element_type=np.dtype(np.float32))
    result = result * scale_a.reshape(-1, 1) * scale_b.reshape(1, -1)
    return result if bias is None else result + widen(bias)


def _is_whole_or_by_rows(node: fx.Node) -> bool:
    given = graphs.bound(node)
    rows, columns = graphs.type_of(given["self"]).shape[0], graphs.type_of(given["mat2"]).shape[1]
    shapes = [_shapes(given[name]) for name in ("scale_a", "scale_b")]
    return [math.prod(shape) for one in shapes for shape in one] == [1, 1] or shapes == [[(rows, 1)], [(1, columns)]]


def _shapes(scales: Any) -> list[tuple[int, ...]]:
    return [graphs.type_of(scale).shape for scale in (scales if isinstance(scales, (list, tuple)) else [scales])]


def _scales_in_words(node: fx.Node) -> str:
    given = graphs.bound(node)
    shapes = ", ".join(str(list(shape)) for name in ("scale_a", "scale_b") for shape in _shapes(given[name]))
    return f"expected one scale for all of each matrix, or one for each row and each column, got scales {shapes}"


SCALES = Limit(_is_whole_or_by_rows, _scales_in_words)


@lowers(aten._scaled_mm.default, limit=SCALES)
def scaled_mm(
    self: Any,
    mat2: Any,
    scale_a: Any,
    scale_b: Any,
    bias: Any = None,
    scale_result: Any = None,
    out_dtype: Any = None,
    use_fast_accum: bool = False,
    *,
    out: TensorType,
) -> jax.Array:
    """float8 [m, k] @ float8 [k, n], scaled whole or by rows and columns. ``scale_result`` divides float8 results
    alone."""
    result = _scaled(self, mat2, scale_a, scale_b, bias)
    if scale_result is not None and out.dtype in FLOAT8:
        result = result / scale_result.reshape(())
    return finish(result, out)


@lowers(aten._scaled_mm_v2.default, limit=SCALES)
def scaled_mm_v2(
    self: Any,
    mat2: Any,
    scale_a: Sequence[Any],
    recipe_a: Sequence[int],
    swizzle_a: Sequence[int],
    scale_b: Sequence[Any],
    recipe_b: Sequence[int],
    swizzle_b: Sequence[int],
    bias: Any,
    out_dtype: Any,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
    *,
    out: TensorType,
) -> jax.Array:
    """``scaled_mm`` with lists of scales: one of each."""
    return finish(_scaled(self, mat2, scale_a[0], scale_b[0], bias), out)


@lowers(aten._weight_int8pack_mm.default, multiplies="matrices")
def weight_int8pack_mm(self: Any, mat2: Any, scales: Any, *, out: TensorType) -> jax.Array:
    """[m, k] @ int8 [n, k] transposed, times a scale for each of the n columns."""
    return finish(_by_rows(self, cast(mat2, self.dtype)) * widen(scales), out)


def _by_rows(x: jax.Array, weights: jax.Array) -> jax.Array:
    """[m, k] by [n, k], in the compute dtype."""
    contracted = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weights, contracted, preferred_element_type=compute_dtype(x.dtype))


class Blocks(NamedTuple):
    """Blocks of rows of a 4-bit matrix, one after the other. Of each, bytes hold two rows of a column.

    Attributes:
        number: how many.
        low, high: the rows in the low and in the high half of each byte of a column, counted from the block's first.
    """

    number: int
    low: tuple[int, ...]
    high: tuple[int, ...]


@kept(256, "eager packs some numbers of rows to show its layout, which depends on the CPU's vectors")
def blocks_of(rows: int) -> tuple[Blocks, ...]:
    """How eager packs as many rows on this CPU."""
    count = max(1, math.ceil(math.log(rows, 16)))
    number = torch.arange(rows, dtype=torch.int32)[:, None].expand(rows, 2)
    with compat.disable_current_modes():
        packed = [_packed(number >> 4 * digit & 15) for digit in range(count)]
        columns = (_packed(torch.arange(2, dtype=torch.int32).expand(rows, 2)) & 15).tolist()
    halves = [[(half >> shift & 15) << 4 * at for at, half in enumerate(packed)] for shift in (0, 4)]
    low, high = (torch.stack(digits).sum(0) for digits in halves)
    found: list[Blocks] = []
    start = 0
    while start < rows:  # of two columns there are as many bytes as rows
        width = columns[start:].index(1)
        block = Blocks(1, *(tuple((half[start : start + width] - start).tolist()) for half in (low, high)))
        same = found and found[-1][1:] == block[1:]
        found[-1:] = [block._replace(number=found[-1].number + 1)] if same else [*found[-1:], block]
        start += 2 * width
    return tuple(found)


def _packed(weights: torch.Tensor) -> torch.Tensor:
    return aten._convert_weight_to_int4pack_for_cpu(weights.contiguous(), 1).flatten().int()


@lowers(aten._convert_weight_to_int4pack_for_cpu.default)
def convert_weight_to_int4pack_for_cpu(self: Any, innerKTiles: int, *, out: TensorType) -> jax.Array:
    """Whole numbers below 16, int32 [n, k], two to a byte of uint8 [n, k / 2], as eager packs them on this CPU."""
    parts: list[jax.Array] = []
    start = 0
    for count, *halves in blocks_of(self.shape[0]):
        size = sum(map(len, halves))
        rows = self[start : start + count * size].reshape(count, size, -1)
        low, high = (rows[:, np.asarray(half)].swapaxes(1, 2) for half in halves)
        parts.append((low | high << 4).reshape(-1))
        start += count * size
    return finish(jnp.concatenate(parts), out)


def _unpacked(packed: Any) -> jax.Array:
    """uint8 [n, k / 2] as int8 [n, k]."""
    parts: list[jax.Array] = []
    start = 0
    for count, *halves in blocks_of(packed.shape[0]):
        size = sum(map(len, halves))
        block = packed[start : start + count * size].reshape(count, -1, size // 2)
        rows = jnp.concatenate([block & 15, block >> 4], axis=2)[:, :, np.argsort(np.concatenate(halves))]
        parts.append(rows.swapaxes(1, 2).reshape(count * size, -1))
        start += count * size
    return jnp.concatenate(parts).astype(np.int8)


@lowers(aten._weight_int4pack_mm_for_cpu.default, multiplies="matrices")
def weight_int4pack_mm_for_cpu(
    self: Any, mat2: Any, qGroupSize: int, qScaleAndZeros: Any, *, out: TensorType
) -> jax.Array:
    """[m, k] @ packed [n, k / 2] transposed. Of the scale and the zero of a group of columns, [k / group, n, 2], a
    weight w is (w - 8) * scale + zero, in float32, which the MXU rounds for narrow rows."""
    scale, zero = (jnp.repeat(widen(qScaleAndZeros[..., at]).T, qGroupSize, axis=1) for at in range(2))
    weights = (_unpacked(mat2).astype(scale.dtype) - 8) * scale + zero
    return finish(_by_rows(cast(self, weights.dtype), weights), out)
