"""Indexing by tensors: gathers. Negatives count from the end where torch allows them.

Eager raises for an index out of range. A program cannot raise, and to look at indices on the host would wait
for them, so nothing is checked: the element is then unspecified, but no memory beyond the array is touched.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.added_rows import IN_BOUNDS, add_rows
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.aten.views import along
from tpu_lowering.lower.table import lowers

aten = compat.aten


def is_mask(index: Any) -> bool:
    """Whether an index selects by truth (bool, or uint8 as torch still allows) rather than by position."""
    return index is not None and index.dtype in (np.bool_, np.uint8)


def index_tuple(indices: list[Any]) -> tuple[Any, ...]:
    """The NumPy index for torch's list of positions: None takes a whole dimension."""
    return tuple(slice(None) if index is None else index for index in indices)


def positions_under(indices: list[Any], size: int) -> list[Any]:
    """torch's list with each mask as the positions of its true elements: a vector for each of the mask's dimensions.

    How many elements are true is no shape. A vector has ``size`` elements, and repeats its last position beyond that
    number; so a mask with one true element is broadcast to its neighbours, as eager does it.
    """
    place = jax.lax.iota(np.dtype(np.int64), size)
    result: list[Any] = []
    for index in indices:
        if is_mask(index):
            own = jnp.minimum(place, jnp.count_nonzero(index) - 1)
            result += [vector[own] for vector in jnp.nonzero(index, size=size)]
        else:
            result.append(index)
    return result


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor)
def index_(self: Any, indices: list[Any], *, out: TensorType) -> jax.Array:
    """self[indices], where None takes a whole dimension. Masks select as many elements as the result has."""
    if any(map(is_mask, indices)):
        indices = positions_under(indices, out.shape[_last_indexed(indices)])
    return finish(self.at[index_tuple(indices)].get(mode=IN_BOUNDS), out)


def _last_indexed(indices: list[Any]) -> int:
    """The dimension of the result that masks select: the last of those that indices make."""
    made = max(1 if is_mask(index) else index.ndim for index in indices if index is not None)
    return (0 if are_apart(indices) else _leading(indices)) + made - 1


def are_apart(indices: list[Any]) -> bool:
    """Whether a whole dimension stands between indices; the dimensions that they make then come first."""
    between = [index is None for index in indices[_leading(indices) :]]
    return True in between and False in between[between.index(True) :]


def _leading(indices: list[Any]) -> int:
    return next(at for at, index in enumerate(indices) if index is not None)


@lowers(aten.index_select.default)
def index_select(self: Any, dim: int, index: Any, *, out: TensorType) -> jax.Array:
    """The slices along ``dim`` that a vector of positions names."""
    if self.ndim == 0:
        return finish(jnp.broadcast_to(self, out.shape), out)
    return finish(self.at[along(dim, self.ndim, index.reshape(-1))].get(mode=IN_BOUNDS), out)


@lowers(aten.repeat_interleave.Tensor)
def repeat_interleave(repeats: Any, *, output_size: int | None = None, out: TensorType) -> jax.Array:
    """Each position as often as ``repeats`` says; the caller says how many that makes."""
    positions = jax.lax.iota(out.dtype, repeats.shape[0])
    return finish(jnp.repeat(positions, repeats, total_repeat_length=out.shape[0]), out)


def at_least_1d(*values: Any) -> list[Any]:
    """0-d tensors as tensors of one element."""
    return [value.reshape(1) if value.ndim == 0 else value for value in values]


@lowers(aten.gather.default)
def gather(self: Any, dim: int, index: Any, *, sparse_grad: bool = False, out: TensorType) -> jax.Array:
    """result[i][j] = self[index[i][j]][j] for dim 0; ``index`` may be smaller than ``self`` elsewhere."""
    x, position = at_least_1d(self, index)
    if position.size == 0:
        return jnp.zeros(out.shape, out.dtype)
    axis = dim % x.ndim
    region = tuple(slice(None) if d == axis else slice(0, size) for d, size in enumerate(position.shape))
    return finish(jnp.take_along_axis(x[region], position, axis=axis, mode=IN_BOUNDS), out)


@lowers(aten.take.default)
def take(self: Any, index: Any, *, out: TensorType) -> jax.Array:
    """Elements at flat positions."""
    return finish(self.reshape(-1).at[index].get(mode=IN_BOUNDS), out)


@lowers(aten.embedding.default)
def embedding(
    weight: Any,
    indices: Any,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    out: TensorType,
) -> jax.Array:
    """The rows of ``weight`` that ``indices`` name; result [*indices.shape, width]."""
    return weight.at[indices].get(mode=IN_BOUNDS, wrap_negative_indices=False)


@lowers(aten.embedding_dense_backward.default)
def embedding_dense_backward(
    grad_output: Any,
    indices: Any,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
    *,
    out: TensorType,
) -> jax.Array:
    """Gradient rows added up by index, in float32; ``padding_idx`` gets none."""
    flat = indices.reshape(-1)
    grad = grad_output.reshape(-1, out.shape[-1])
    if scale_grad_by_freq:
        grad = widen(grad)
        counts = jnp.zeros(num_weights, grad.dtype).at[flat].add(1, mode=IN_BOUNDS)
        grad = grad / counts[flat][:, None]
    if padding_idx >= 0:
        grad = jnp.where((flat == padding_idx)[:, None], jnp.zeros((), grad.dtype), grad)

    def plain(table: Any, index: Any, rows: Any) -> jax.Array:
        at = widen(table).at[index]
        return cast(at.add(widen(rows), mode=IN_BOUNDS, wrap_negative_indices=False), table.dtype)

    return finish(add_rows(jnp.zeros((), out.dtype), flat, grad, False, plain, out.shape), out)


@lowers(aten.nonzero_static.default)
def nonzero_static(self: Any, *, size: int, fill_value: int = -1, out: TensorType) -> jax.Array:
    """[size, ndim]: the positions of the first ``size`` elements that are not 0; ``fill_value`` beyond them."""
    if self.size == 0:
        return jnp.full(out.shape, fill_value, out.dtype)
    return finish(jnp.argwhere(self, size=size, fill_value=fill_value), out)
