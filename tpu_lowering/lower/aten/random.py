"""Random numbers: JAX's counter-based generator, threefry, from a key of two ``uint32``.

Rules take the node's own key first, then the operator's arguments less those given for their shape. Distributions
are torch's, with its parameters and its bounds; the values are not those of torch's generator. Numbers narrower
than float32 are drawn in float32 and rounded, but uniform ones, which would round up to their bound.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.random import KEY_BYTES
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import draws, lowers

aten = compat.aten


def _key(data: Any) -> jax.Array:
    """The typed key; the kind is named, because a user may have set another default."""
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def derive_key(key: Any, index: int, *, out: TensorType) -> jax.Array:
    """A node's own key, uint32 [2], from the program's and the node's number."""
    return jax.random.key_data(jax.random.fold_in(_key(key), index))


def pack_key(key: Any, size: int, *, out: TensorType) -> jax.Array:
    """A key as bytes with zeros behind, uint8 [size]."""
    return jnp.pad(jax.lax.bitcast_convert_type(key, np.uint8).reshape(-1), (0, size - KEY_BYTES))


def unpack_key(state: Any, *, out: TensorType) -> jax.Array:
    """The key, uint32 [2], that ``pack_key`` made bytes of."""
    return jax.lax.bitcast_convert_type(state[:KEY_BYTES].reshape(2, -1), np.uint32)


def _floating(out: TensorType) -> np.dtype[Any]:
    """The dtype to draw floating-point numbers in."""
    return compute_dtype(out.dtype) if out.element.is_floating else np.dtype(np.float32)


@draws(aten.uniform.default)
def uniform(key: Any, from_: float = 0.0, to: float = 1.0, *, out: TensorType) -> jax.Array:
    """Uniform in [from, to); the real and the imaginary part of a complex number each."""
    if out.element.is_complex:
        part = np.dtype(np.float32 if out.element.name == "c64" else np.float64)
        parts = jax.random.uniform(_key(key), (2, *out.shape), part, from_, to)
        return jax.lax.complex(parts[0], parts[1])
    return jax.random.uniform(_key(key), out.shape, out.dtype, from_, to)


@draws(aten.normal_functional.default)
def normal(key: Any, mean: Any = 0.0, std: float = 1.0, *, out: TensorType) -> jax.Array:
    """Normal; the variance of a complex number is that of both parts together."""
    dtype = out.dtype if out.element.is_complex else _floating(out)
    drawn = jax.random.normal(_key(key), out.shape, dtype)
    return finish(drawn * cast(std, dtype) + cast(mean, dtype), out)


@draws(aten.log_normal.default)
def log_normal(key: Any, mean: float = 1.0, std: float = 2.0, *, out: TensorType) -> jax.Array:
    """exp of a normal number."""
    dtype = _floating(out)
    return finish(jnp.exp(jax.random.normal(_key(key), out.shape, dtype) * cast(std, dtype) + cast(mean, dtype)), out)


@draws(aten.cauchy.default)
def cauchy(key: Any, median: float = 0.0, sigma: float = 1.0, *, out: TensorType) -> jax.Array:
    """median + sigma * tan(pi * (u - 1/2)) of a uniform u."""
    dtype = _floating(out)
    return finish(jax.random.cauchy(_key(key), out.shape, dtype) * cast(sigma, dtype) + cast(median, dtype), out)


@draws(aten.exponential.default)
def exponential(key: Any, lambd: float = 1.0, *, out: TensorType) -> jax.Array:
    """Exponential with rate ``lambd``, never 0."""
    dtype = _floating(out)
    drawn = jax.random.exponential(_key(key), out.shape, dtype)
    return finish(jnp.maximum(drawn, jnp.finfo(dtype).eps / 2) / cast(lambd, dtype), out)


@draws(aten.geometric.default)
def geometric(key: Any, p: float, *, out: TensorType) -> jax.Array:
    """How many trials until one with probability ``p`` succeeds: 1, 2, ..."""
    dtype = np.dtype(np.float64) if out.element.name == "f64" else np.dtype(np.float32)
    drawn = jax.random.uniform(_key(key), out.shape, dtype, jnp.finfo(dtype).tiny)
    return finish(jnp.maximum(jnp.ceil(jnp.log(drawn) / np.log1p(-p, dtype=dtype)), 1), out)


@draws(aten.bernoulli.p)
def bernoulli(key: Any, p: float, *, out: TensorType) -> jax.Array:
    """1 with probability ``p``, else 0."""
    return finish(jax.random.bernoulli(_key(key), p, out.shape), out)


@draws(getattr(aten.random, "from"))
def integers(key: Any, low: int, high: int, *, out: TensorType) -> jax.Array:
    """Integers in [low, high), each with the same probability; in 32 bits where that is enough."""
    limits = np.iinfo(np.int32)
    dtype = np.int32 if limits.min <= low and high <= limits.max else np.int64
    return finish(jax.random.randint(_key(key), out.shape, low, high, dtype), out)


@draws(aten.randperm.default)
def permutation(key: Any, n: int, *, dtype: Any = None, out: TensorType) -> jax.Array:
    """0 to n - 1 in random order."""
    return finish(jax.random.permutation(_key(key), n), out)


@draws(aten.poisson.default)
def poisson(key: Any, self: Any, *, out: TensorType) -> jax.Array:
    """Poisson with rates ``self``."""
    count = np.int64 if out.element.name == "f64" else np.int32
    return finish(jax.random.poisson(_key(key), cast(self, _floating(out)), out.shape, count), out)


@draws(aten.binomial.default)
def binomial(key: Any, count: Any, prob: Any, *, out: TensorType) -> jax.Array:
    """How many of ``count`` trials succeed, each with probability ``prob``."""
    dtype = _floating(out)
    return finish(jax.random.binomial(_key(key), cast(count, dtype), cast(prob, dtype), out.shape, dtype), out)


@draws(aten._standard_gamma.default)
def standard_gamma(key: Any, self: Any, *, out: TensorType) -> jax.Array:
    """Gamma with shapes ``self`` and rate 1; at least the smallest normal number, as in eager."""
    drawn = jax.random.gamma(_key(key), cast(self, _floating(out)), out.shape)
    return finish(jnp.maximum(drawn, jnp.finfo(out.dtype).tiny), out)


@draws(aten._sample_dirichlet.default)
def sample_dirichlet(key: Any, self: Any, *, out: TensorType) -> jax.Array:
    """Dirichlet with concentrations ``self`` along the last dimension."""
    return finish(jax.random.dirichlet(_key(key), cast(self, _floating(out))), out)


@draws(aten.rrelu_with_noise_functional.default)
def rrelu_with_noise_functional(
    key: Any,
    self: Any,
    lower: Any = 1 / 8,
    upper: Any = 1 / 3,
    training: bool = False,
    *,
    out: tuple[TensorType, TensorType],
) -> tuple[jax.Array, jax.Array]:
    """self * noise, and the noise: uniform in [lower, upper) where ``self`` is not positive, elsewhere 1."""
    dtype = _floating(out[0])
    slope = jax.random.uniform(_key(key), out[0].shape, dtype, lower, upper)
    noise = jnp.where(self <= 0, slope if training else (lower + upper) / 2, 1)
    return finish(cast(self, dtype) * noise, out[0]), finish(noise, out[1])


@lowers(aten._standard_gamma_grad.default)
def standard_gamma_grad(self: Any, output: Any, *, out: TensorType) -> jax.Array:
    """The derivative of a gamma number by the shape ``self`` that it was drawn with."""
    dtype = _floating(out)
    return finish(jax.lax.random_gamma_grad(cast(self, dtype), cast(output, dtype), dtype=dtype), out)
