"""What the kernels compute, in plain ``jax.numpy``: what their vectorized form is measured against.

Inputs are arrays in the order of each kernel's model. ``low_mem_dropout`` has the kernel's own generator, and
``welford_blocked`` its algorithm: both are the same computation, not another one with the same purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from bench.kernels.direct import mix

COLUMNS = 512  # of a block of the kernel ``welford``


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """By the mean, and the mean of squared deviations; x [m, n], weight and bias [n]."""
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * weight + bias


def welford_blocked(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer norm whose statistics are merged block by block; see ``bench.kernels.welford``."""
    m, n = x.shape
    count, mean, squares = 0.0, jnp.zeros(m, jnp.float32), jnp.zeros(m, jnp.float32)
    starts = range(0, n, COLUMNS)
    for start in starts:
        values = x[:, start : start + COLUMNS]
        block_count = float(values.shape[1])
        block_mean = values.sum(axis=1) / block_count
        centred = values - block_mean[:, None]
        shift, merged = block_mean - mean, count + block_count
        squares = squares + (centred * centred).sum(axis=1) + shift * shift * (count * block_count / merged)
        mean = mean + shift * (block_count / merged)
        count = merged
    scale = jax.lax.rsqrt(squares / count + 1e-5)
    parts = [
        (x[:, start : start + COLUMNS] - mean[:, None]) * scale[:, None] * weight[start : start + COLUMNS]
        + bias[start : start + COLUMNS]
        for start in starts
    ]
    return jnp.concatenate(parts, axis=1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """With the whole matrix of scores in memory; all [batch, heads, length, width]."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scores without scale, and no query sees a later key; all [batch, heads, length, width]."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v)


def low_mem_dropout(x: jax.Array, seed: jax.Array) -> jax.Array:
    """With the probability 1/4; x [m, n], seed int32 [1]."""
    index = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
    bits = mix(mix(index) + seed)
    fraction = ((bits >> 8) & 0xFFFFFF).astype(jnp.float32) * 2.0**-24
    return jnp.where(fraction >= 0.25, x * (1 / 0.75), 0)


PLAIN: Mapping[str, Mapping[str, Callable[..., jax.Array]]] = {
    "exp": {"plain": jnp.exp},
    "add": {"plain": jnp.add},
    "softmax_two_pass": {"plain": lambda x: jax.nn.softmax(x, axis=1)},
    "welford": {"plain": layer_norm, "plain_blocked": welford_blocked},
    "attention": {"plain": attention},
    "bmm": {"plain": jnp.matmul},
    "geglu": {"plain": lambda a, b: jax.nn.gelu(a, approximate=True) * b},
    "low_mem_dropout": {"plain": low_mem_dropout},
    "swiglu": {"plain": lambda a, b: jax.nn.silu(a) * b},
    "flash_attention": {"plain": causal_attention},
}
"""The plain forms of every kernel, by the side they are."""
