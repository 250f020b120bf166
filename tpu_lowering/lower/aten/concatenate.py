"""New tensors from the elements of others: joined, repeated, mirrored, padded."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


@lowers(aten.cat.default)
def cat(tensors: list[Any], dim: int = 0, *, out: TensorType) -> jax.Array:
    """Joined along ``dim``. A tensor of shape (0,) is left out whatever the others' shapes, as torch does."""
    parts = [cast(x, out.dtype) for x in tensors if x.shape != (0,)]
    if not parts:
        return jnp.zeros(out.shape, out.dtype)
    return finish(jnp.concatenate(parts, axis=dim), out)


@lowers(aten.stack.default)
def stack(tensors: list[Any], dim: int = 0, *, out: TensorType) -> jax.Array:
    """Joined along a new dimension ``dim``."""
    return finish(jnp.stack([cast(x, out.dtype) for x in tensors], axis=dim), out)


@lowers(aten.repeat.default)
def repeat(self: Any, repeats: list[int], *, out: TensorType) -> jax.Array:
    """Tiled ``repeats`` times along each dimension; missing dimensions are put in front."""
    return finish(jnp.tile(self, tuple(repeats)), out)


@lowers(aten.flip.default)
def flip(self: Any, dims: list[int], *, out: TensorType) -> jax.Array:
    """Mirrored along ``dims``."""
    return self if self.ndim == 0 else jnp.flip(self, tuple(dims))


@lowers(aten.roll.default)
def roll(self: Any, shifts: Any, dims: Any = (), *, out: TensorType) -> jax.Array:
    """Elements shifted along ``dims`` and wrapped around; along the flat tensor if ``dims`` is empty."""
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if not dims:
        return finish(jnp.roll(self.reshape(-1), shifts[0]), out)
    return jnp.roll(self, shifts, (dims,) if isinstance(dims, int) else tuple(dims))


@lowers(aten.constant_pad_nd.default)
def constant_pad_nd(self: Any, pad: list[int], value: Any = 0, *, out: TensorType) -> jax.Array:
    """Padded with ``value``; ``pad`` lists (before, after) from the last dimension on, negative to crop."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    config = [(0, 0, 0)] * (self.ndim - len(pairs)) + [(before, after, 0) for before, after in pairs]
    return jax.lax.pad(self, cast(value, self.dtype), config)


@lowers(aten.tril.default)
def tril(self: Any, diagonal: int = 0, *, out: TensorType) -> jax.Array:
    """The lower triangle of the last two dimensions, up to ``diagonal``; 0 elsewhere."""
    return jnp.tril(self, diagonal)


@lowers(aten.triu.default)
def triu(self: Any, diagonal: int = 0, *, out: TensorType) -> jax.Array:
    """The upper triangle of the last two dimensions, from ``diagonal`` on; 0 elsewhere."""
    return jnp.triu(self, diagonal)


@lowers(aten.tril_indices.default)
def tril_indices(row: int, col: int, offset: int = 0, *, out: TensorType, **_: Any) -> jax.Array:
    """Row and column numbers of the lower triangle, [2, n]."""
    return jnp.asarray(np.stack(np.tril_indices(row, offset, col)).astype(out.dtype))


@lowers(aten.triu_indices.default)
def triu_indices(row: int, col: int, offset: int = 0, *, out: TensorType, **_: Any) -> jax.Array:
    """Row and column numbers of the upper triangle, [2, n]."""
    return jnp.asarray(np.stack(np.triu_indices(row, offset, col)).astype(out.dtype))
