"""Views as values: reshapes, transposes, slices. The graph is functional, so nothing here shares memory.

Where a result has the argument's elements in the argument's order, its shape alone (``out``) says all.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


@lowers(
    aten.view.default,
    aten.reshape.default,
    aten.view_copy.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def reshape(self: Any, *_: Any, out: TensorType) -> jax.Array:
    """The same elements in the same order, in the shape of ``out``."""
    return self.reshape(out.shape)


@lowers(aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)
def alias(self: Any, *, out: TensorType) -> jax.Array:
    """The argument itself."""
    return self


@lowers(aten.expand.default)
def expand(self: Any, size: Any, *, implicit: bool = False, out: TensorType) -> jax.Array:
    """Broadcast to ``out``'s shape."""
    return jnp.broadcast_to(self, out.shape)


@lowers(aten.permute.default, aten.permute_copy.default)
def permute(self: Any, dims: list[int], *, out: TensorType) -> jax.Array:
    """Dimensions in the order ``dims``."""
    return jnp.transpose(self, [dim % self.ndim for dim in dims])


@lowers(aten.transpose.int)
def transpose(self: Any, dim0: int, dim1: int, *, out: TensorType) -> jax.Array:
    """Two dimensions swapped."""
    return self if self.ndim == 0 else jnp.swapaxes(self, dim0, dim1)


@lowers(aten.t.default)
def t(self: Any, *, out: TensorType) -> jax.Array:
    """A matrix transposed; vectors and 0-d tensors stay."""
    return jnp.transpose(self)


def slice_bounds(size: int, start: int | None, end: int | None, step: int) -> slice:
    """The slice that torch means: bounds are clamped to the size, and an end before the start is empty."""
    begin, stop, _ = slice(start, end).indices(size)
    return slice(begin, max(begin, stop), step)


def along(dim: int, ndim: int, index: Any) -> tuple[Any, ...]:
    """An index tuple that applies ``index`` to ``dim`` and takes all of the dimensions before it."""
    return (slice(None),) * (dim % ndim) + (index,)


@lowers(aten.slice.Tensor)
def slice_(
    self: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1, *, out: TensorType
) -> jax.Array:
    """Elements ``start``, ``start + step``, ... before ``end`` along ``dim``."""
    bounds = slice_bounds(self.shape[dim], start, end, step)
    return jax.lax.slice_in_dim(self, bounds.start, bounds.stop, step, axis=dim % self.ndim)


@lowers(aten.narrow_copy.default)
def narrow(self: Any, dim: int, start: int, length: int, *, out: TensorType) -> jax.Array:
    """``length`` elements from ``start`` on along ``dim``."""
    axis = dim % self.ndim
    begin = start % self.shape[axis] if start < 0 else start
    return jax.lax.slice_in_dim(self, begin, begin + length, axis=axis)


@lowers(aten.slice_scatter.default)
def slice_scatter(
    self: Any,
    src: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
    *,
    out: TensorType,
) -> jax.Array:
    """``self`` with that slice replaced by ``src``."""
    bounds = slice_bounds(self.shape[dim], start, end, step)
    return self.at[along(dim, self.ndim, bounds)].set(src.astype(self.dtype))


@lowers(aten.select.int)
def select(self: Any, dim: int, index: int, *, out: TensorType) -> jax.Array:
    """The slice at ``index`` along ``dim``, without that dimension."""
    return jax.lax.index_in_dim(self, index, axis=dim % self.ndim, keepdims=False)


@lowers(aten.select_scatter.default)
def select_scatter(self: Any, src: Any, dim: int, index: int, *, out: TensorType) -> jax.Array:
    """``self`` with the slice at ``index`` along ``dim`` replaced by ``src``."""
    return self.at[along(dim, self.ndim, index)].set(src.astype(self.dtype))


@lowers(aten.split_with_sizes.default, aten.split_with_sizes_copy.default)
def split_with_sizes(
    self: Any, split_sizes: list[int], dim: int = 0, *, out: tuple[TensorType, ...]
) -> tuple[jax.Array, ...]:
    """Consecutive pieces of the given sizes along ``dim``."""
    return tuple(jax.lax.split(self, tuple(split_sizes), axis=dim % self.ndim))


@lowers(aten.split.Tensor, aten.unsafe_split.Tensor)
def split(self: Any, split_size: int, dim: int = 0, *, out: tuple[TensorType, ...]) -> tuple[jax.Array, ...]:
    """Consecutive pieces of ``split_size`` along ``dim``, the last one what remains."""
    sizes = tuple(piece.shape[dim] for piece in out)
    return tuple(jax.lax.split(self, sizes, axis=dim % self.ndim))


@lowers(aten.unbind.int, aten.unbind_copy.int)
def unbind(self: Any, dim: int = 0, *, out: tuple[TensorType, ...]) -> tuple[jax.Array, ...]:
    """The slices along ``dim``, each without that dimension."""
    return tuple(jax.lax.index_in_dim(self, i, axis=dim % self.ndim, keepdims=False) for i in range(len(out)))


@lowers(aten.diagonal.default)
def diagonal(self: Any, offset: int = 0, dim1: int = 0, dim2: int = 1, *, out: TensorType) -> jax.Array:
    """The diagonal of two dimensions, as the last dimension."""
    return jnp.diagonal(self, offset, dim1, dim2)


def _diagonal_index(ndim: int, offset: int, dim1: int, dim2: int, length: int) -> tuple[Any, ...]:
    """The index, with ``dim1`` and ``dim2`` moved to the end, of that diagonal."""
    steps = np.arange(length)
    return (..., steps + max(0, -offset), steps + max(0, offset))


@lowers(aten.diagonal_scatter.default)
def diagonal_scatter(
    self: Any, src: Any, offset: int = 0, dim1: int = 0, dim2: int = 1, *, out: TensorType
) -> jax.Array:
    """``self`` with that diagonal replaced by ``src``."""
    ends = jnp.moveaxis(self, (dim1, dim2), (-2, -1))
    index = _diagonal_index(self.ndim, offset, dim1, dim2, src.shape[-1])
    return jnp.moveaxis(ends.at[index].set(src.astype(self.dtype)), (-2, -1), (dim1, dim2))


@lowers(aten.unfold.default)
def unfold(self: Any, dimension: int, size: int, step: int, *, out: TensorType) -> jax.Array:
    """Windows of ``size`` along ``dimension``, every ``step``; a window's elements are the last dimension."""
    if self.ndim == 0:
        return finish(self, out)
    axis = dimension % self.ndim
    starts = np.arange(out.shape[axis]) * step
    windows = jnp.take(self, starts[:, None] + np.arange(size), axis=axis)
    return jnp.moveaxis(windows, axis + 1, -1)


@lowers(aten.view.dtype)
def view_dtype(self: Any, dtype: Any, *, out: TensorType) -> jax.Array:
    """The same bits read as another dtype; sizes that differ scale the last dimension."""
    here, there = self.dtype.itemsize, out.dtype.itemsize
    source = self.astype(np.uint8) if self.dtype == np.bool_ else self
    target = np.dtype(np.uint8) if out.dtype == np.bool_ else out.dtype
    if here < there:
        source = source.reshape(*source.shape[:-1], -1, there // here)
    return finish(jax.lax.bitcast_convert_type(source, target), out)


@lowers(aten.view_as_real.default)
def view_as_real(self: Any, *, out: TensorType) -> jax.Array:
    """Real and imaginary part as a last dimension of 2."""
    return jnp.stack([jnp.real(self), jnp.imag(self)], axis=-1)


@lowers(aten.view_as_complex.default)
def view_as_complex(self: Any, *, out: TensorType) -> jax.Array:
    """Complex numbers from a last dimension of 2."""
    return jax.lax.complex(self[..., 0], self[..., 1])
