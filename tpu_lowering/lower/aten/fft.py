"""Fourier transforms. ``normalization`` 0 scales by nothing, 1 by 1 / sqrt(n), 2 by 1 / n."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _scale(sizes: list[int], normalization: int) -> float:
    """The factor of a transform over dimensions of those sizes."""
    count = math.prod(sizes)
    return {0: 1.0, 1: 1 / math.sqrt(count), 2: 1 / count}[normalization]


@lowers(aten._fft_c2c.default)
def fft_c2c(self: Any, dim: list[int], normalization: int, forward: bool, *, out: TensorType) -> jax.Array:
    """Complex to complex over ``dim``."""
    transform = jnp.fft.fftn if forward else jnp.fft.ifftn
    result = transform(self, axes=tuple(dim), norm="backward" if forward else "forward")
    return finish(result * _scale([self.shape[d] for d in dim], normalization), out)


@lowers(aten._fft_r2c.default)
def fft_r2c(self: Any, dim: list[int], normalization: int, onesided: bool, *, out: TensorType) -> jax.Array:
    """Real to complex over ``dim``; ``onesided`` keeps the last one's first half, which tells the rest."""
    transform = jnp.fft.rfftn if onesided else jnp.fft.fftn
    result = transform(self, axes=tuple(dim))
    return finish(result * _scale([self.shape[d] for d in dim], normalization), out)


@lowers(aten._fft_c2r.default)
def fft_c2r(self: Any, dim: list[int], normalization: int, last_dim_size: int, *, out: TensorType) -> jax.Array:
    """The inverse of a one-sided transform: complex to real over ``dim``, the last of ``last_dim_size``."""
    sizes = [self.shape[d] for d in dim[:-1]] + [last_dim_size]
    result = jnp.fft.irfftn(self, s=sizes, axes=tuple(dim), norm="forward")
    return finish(result * _scale(sizes, normalization), out)
