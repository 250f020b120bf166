"""``as_strided`` on a value whose memory is its elements in row-major order.

Most strided views are a slice of a reshape of the memory, repeated for each dimension: with strides
s1 > s2 > ..., cut the memory into rows of s1, take the wanted rows, go on inside a row. Views whose rows
overlap (a stride smaller than what lies inside it) need a gather.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class Cut:
    """One dimension of a strided view, in memory order: ``count`` rows of ``stride``, from ``begin`` on."""

    dim: int
    begin: int
    count: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Cuts:
    """A strided view as nested cuts, the outermost first; ``start`` is the position within the last row."""

    cuts: tuple[Cut, ...]
    start: int


def decode(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Cuts | None:
    """The nested cuts of a strided view, or None where rows overlap.

    Dimensions of size 1 and of stride 0 are left out: they are broadcasts of the rest.
    """
    dims = [d for d in range(len(size)) if size[d] > 1 and stride[d] > 0]
    dims.sort(key=lambda d: -stride[d])
    cuts: list[Cut] = []
    start = offset
    for position, dim in enumerate(dims):
        extent = 1 + sum((size[d] - 1) * stride[d] for d in dims[position + 1 :])
        if extent > stride[dim]:
            return None
        within = start % stride[dim]
        begin = start - within if within + extent <= stride[dim] else start
        cuts.append(Cut(dim, begin, size[dim], stride[dim]))
        start -= begin
    return Cuts(tuple(cuts), start)


def _rows(memory: jax.Array, cut: Cut) -> jax.Array:
    """[..., length] -> [..., count, stride]; past the end there are zeros, which no view reads."""
    missing = max(0, cut.begin + cut.count * cut.stride - memory.shape[-1])
    if missing:
        memory = jnp.pad(memory, [(0, 0)] * (memory.ndim - 1) + [(0, missing)])
    rows = memory[..., cut.begin : cut.begin + cut.count * cut.stride]
    return rows.reshape(*memory.shape[:-1], cut.count, cut.stride)


def _read(memory: jax.Array, cuts: Cuts) -> jax.Array:
    """The view's elements, [count of each cut]."""
    for cut in cuts.cuts:
        memory = _rows(memory, cut)
    return memory[..., cuts.start]


def _write(memory: jax.Array, cuts: Cuts, src: jax.Array) -> jax.Array:
    """The memory with the view's elements replaced by ``src``, [count of each cut]."""
    if not cuts.cuts:
        return memory.at[..., cuts.start].set(src)
    cut, inner = cuts.cuts[0], Cuts(cuts.cuts[1:], cuts.start)
    rows = _write(_rows(memory, cut), inner, src)
    flat = rows.reshape(*memory.shape[:-1], cut.count * cut.stride)
    end = min(cut.begin + cut.count * cut.stride, memory.shape[-1])
    return memory.at[..., cut.begin : end].set(flat[..., : end - cut.begin])


def _positions(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> np.ndarray[Any, Any]:
    """The position in memory of each of the view's elements."""
    positions = np.full(size, offset, np.int64)
    for dim, step in enumerate(stride):
        along = np.arange(size[dim]).reshape([-1 if d == dim else 1 for d in range(len(size))])
        positions = positions + along * step
    return positions


@lowers(aten.as_strided.default, aten.as_strided_copy.default)
def as_strided(self: Any, size: Any, stride: Any, storage_offset: int | None = None, *, out: TensorType) -> jax.Array:
    """The view with those sizes and strides of ``self``'s elements in row-major order."""
    shape, strides, offset = tuple(size), tuple(stride), storage_offset or 0
    memory = self.reshape(-1)
    if 0 in shape:
        return jnp.zeros(shape, out.dtype)
    cuts = decode(shape, strides, offset)
    if cuts is None:
        return memory[_positions(shape, strides, offset)]
    dense = _read(memory, cuts)
    order = sorted(range(len(cuts.cuts)), key=lambda i: cuts.cuts[i].dim)
    dense = jnp.transpose(dense, order)
    kept = {cut.dim for cut in cuts.cuts}
    dense = dense.reshape([n if d in kept else 1 for d, n in enumerate(shape)])
    return jnp.broadcast_to(dense, shape)


@lowers(aten.as_strided_scatter.default)
def as_strided_scatter(
    self: Any, src: Any, size: Any, stride: Any, storage_offset: int | None = None, *, out: TensorType
) -> jax.Array:
    """``self`` with the elements of that strided view replaced by ``src``."""
    shape, strides, offset = tuple(size), tuple(stride), storage_offset or 0
    if 0 in shape:
        return self
    memory, src = self.reshape(-1), cast(src, out.dtype)
    cuts = decode(shape, strides, offset)
    broadcast = any(step == 0 and n > 1 for n, step in zip(shape, strides, strict=True))
    if cuts is None or broadcast:
        return memory.at[_positions(shape, strides, offset)].set(src).reshape(out.shape)
    dims = [cut.dim for cut in cuts.cuts]
    dense = src.reshape([shape[d] for d in sorted(dims)])
    dense = jnp.transpose(dense, [sorted(dims).index(d) for d in dims])
    return _write(memory, cuts, dense).reshape(out.shape)


@lowers(aten.unfold_backward.default)
def unfold_backward(grad_in: Any, input_sizes: Any, dim: int, size: int, step: int, *, out: TensorType) -> jax.Array:
    """The gradient of ``unfold``: windows added up where they overlap."""
    if not out.shape:
        return cast(grad_in, out.dtype).reshape(out.shape)
    axis = dim % len(out.shape)
    windows = np.arange(grad_in.shape[axis])[:, None] * step + np.arange(size)
    grad = jnp.moveaxis(grad_in, (axis, -1), (0, 1))
    rest = [n for d, n in enumerate(out.shape) if d != axis]
    total = jnp.zeros((out.shape[axis], *rest), grad.dtype).at[windows].add(grad)
    return jnp.moveaxis(total, 0, axis).astype(out.dtype)


@lowers(aten.resize.default)
def resize(self: Any, size: list[int], *, memory_format: Any = None, out: TensorType) -> jax.Array:
    """The first elements in another shape; what goes beyond them is undefined in eager, and 0 here."""
    flat = self.reshape(-1)[: out.size]
    return finish(jnp.pad(flat, (0, out.size - flat.size)), out)
