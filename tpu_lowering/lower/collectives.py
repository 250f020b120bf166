"""Functions of ``ir.collectives`` in JAX, inside of a ``shard_map`` over the program's mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering.ir.collectives import Axes, Reduction
from tpu_lowering.ir.types import TensorType

_IN_XLA: dict[str, Callable[[jax.Array, Axes], jax.Array]] = {
    "sum": jax.lax.psum, "min": jax.lax.pmin, "max": jax.lax.pmax,
}  # fmt: skip
_OF_ALL: dict[str, Callable[..., jax.Array]] = {
    "product": jnp.prod, "band": jnp.bitwise_and.reduce, "bor": jnp.bitwise_or.reduce, "bxor": jnp.bitwise_xor.reduce,
}  # fmt: skip


def all_reduce(value: jax.Array, reduction: Reduction, axes: Axes, count: int, *, out: TensorType) -> jax.Array:
    if value.dtype == jnp.bool_:  # as torch adds truth values: any of them
        return all_reduce(value.astype(jnp.uint8), _OF_BOOLS[reduction], axes, count, out=out)
    if reduction == "avg":
        return (jax.lax.psum(value, axes) / count).astype(out.dtype)
    if reduction in _IN_XLA:
        return _IN_XLA[reduction](value, axes).astype(out.dtype)
    return _OF_ALL[reduction](jax.lax.all_gather(value, axes), axis=0).astype(out.dtype)


_OF_BOOLS: dict[str, Any] = {
    "sum": "max", "avg": "max", "product": "min", "min": "min", "max": "max", "band": "min", "bor": "max",
    "bxor": "bxor",
}  # fmt: skip


def all_gather(value: jax.Array, dim: int, axes: Axes, count: int, *, out: TensorType) -> jax.Array:
    if not value.size:
        return jnp.zeros(out.shape, out.dtype)  # XLA gathers no dimension of size 0
    return jax.lax.all_gather(value, axes, axis=dim, tiled=True)


def reduce_scatter(
    value: jax.Array, reduction: Reduction, dim: int, axes: Axes, count: int, *, out: TensorType
) -> jax.Array:
    """XLA scatters sums alone; of another reduction each rank takes its part."""
    if not value.size:
        return jnp.zeros(out.shape, out.dtype)
    if reduction in ("sum", "avg") and value.dtype != jnp.bool_:
        total = jax.lax.psum_scatter(value, axes, scatter_dimension=dim, tiled=True)
        return (total / count if reduction == "avg" else total).astype(out.dtype)
    reduced = all_reduce(value, reduction, axes, count, out=TensorType(out.element, value.shape))
    return own_part(reduced, dim, axes, count, out=out)


def all_to_all(value: jax.Array, split: int, joined: int, axes: Axes, count: int, *, out: TensorType) -> jax.Array:
    if not value.size:
        return jnp.zeros(out.shape, out.dtype)  # XLA gathers no dimension of size 0
    return jax.lax.all_to_all(value, axes, split, joined, tiled=True)


def broadcast(value: jax.Array, source: int, axes: Axes, count: int, *, out: TensorType) -> jax.Array:
    """A sum of bits, of which all ranks but one have zeros: XLA's own broadcast is not on every platform."""
    bits = _bits(value)
    chosen = jax.lax.psum(jnp.where(jax.lax.axis_index(axes) == source, bits, jnp.zeros_like(bits)), axes)
    return _of_bits(chosen, value)


def _bits(value: jax.Array) -> jax.Array:
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value.astype(jnp.uint8) if value.dtype == jnp.bool_ else value
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = jnp.stack([value.real, value.imag], -1)
    return jax.lax.bitcast_convert_type(value, jnp.dtype(f"uint{8 * value.dtype.itemsize}"))


def _of_bits(bits: jax.Array, like: jax.Array) -> jax.Array:
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return bits.astype(like.dtype)
    if not jnp.issubdtype(like.dtype, jnp.complexfloating):
        return jax.lax.bitcast_convert_type(bits, like.dtype)
    parts = jax.lax.bitcast_convert_type(bits, like.real.dtype)
    return jax.lax.complex(parts[..., 0], parts[..., 1])


def own_part(value: jax.Array, dim: int, axes: Axes, count: int, *, out: TensorType) -> jax.Array:
    size = out.shape[dim]
    return jax.lax.dynamic_slice_in_dim(value, jax.lax.axis_index(axes) * size, size, dim)


def after(value: jax.Array, other: jax.Array, axes: Axes, by_barrier: bool, *, out: TensorType) -> jax.Array:
    """Without barriers the value's bits are computed with one element of the other: with none of its bits, but that
    only the place of the rank says, which XLA does not know."""
    if by_barrier or not (value.size and other.size):
        return jax.lax.optimization_barrier((value, other))[0]
    none = jax.lax.axis_index(axes).astype(jnp.uint32) >> 31
    bits = _bits(value)
    first = _bits(other)[(0,) * _bits(other).ndim]
    return _of_bits(bits ^ (first.astype(jnp.uint32) & none).astype(bits.dtype), value)


def mesh_coordinate(axes: Axes, count: int, *, out: TensorType) -> jax.Array:
    return jax.lax.axis_index(axes).astype(out.dtype)
