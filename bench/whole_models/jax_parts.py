"""What the hand-written twins are made of: products without relayouts, library kernels, losses that save little.

Weights are in torch's layout: [out, in] of a linear layer. ``on_cpu`` runs library kernels by Pallas' interpreter.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    NumpyMask,
    QKVLayout,
    make_splash_mha_single_device,
)

BLOCK = 512

again = functools.partial(jax.checkpoint, prevent_cse=False)
"""What is cheap is computed again in the backward, of its arguments."""


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """``x`` [..., in] by ``weight`` [out, in]."""
    made = jnp.einsum("...m,nm->...n", x, weight)
    return made if bias is None else made + bias


def to_heads(x: jax.Array, weight: jax.Array, width: int, bias: jax.Array | None = None) -> jax.Array:
    """[batch, length, in] to [batch, heads, length, width], in one product."""
    made = jnp.einsum("bsm,hdm->bhsd", x, weight.reshape(-1, width, weight.shape[-1]))
    return made if bias is None else made + bias.reshape(-1, 1, width)


def from_heads(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """[batch, heads, length, width] to [batch, length, out], in one product."""
    made = jnp.einsum("bhsd,mhd->bsm", x, weight.reshape(weight.shape[0], x.shape[1], x.shape[3]))
    return made if bias is None else made + bias


@functools.partial(again, static_argnums=2)
def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Over the last dimension, in float32."""
    wide = x.astype(jnp.float32)
    scaled = wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    return weight * scaled.astype(x.dtype)


@functools.partial(again, static_argnums=3)
def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Over the last dimension, in float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, -1, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), -1, keepdims=True)
    scaled = (wide - mean) * lax.rsqrt(variance + epsilon)
    return (scaled * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def angles(positions: jax.Array, width: int, base: float, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embeddings, [length, width]."""
    frequencies = 1.0 / (base ** (np.arange(0, width, 2, dtype=np.float32) / width))
    turned = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)
    turned = jnp.concatenate((turned, turned), -1)
    return jnp.cos(turned).astype(dtype), jnp.sin(turned).astype(dtype)


def rotated(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Rotary embedding of [batch, heads, length, width]."""
    first, second = jnp.split(x, 2, -1)
    return x * cosines + jnp.concatenate((-second, first), -1) * sines


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    on_cpu: bool,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    counted: int | None = None,
    narrow: bool = False,
) -> jax.Array:
    """Splash attention of [batch, heads, length, width]; keys and values may have fewer heads.

    Args:
        window: how many keys each query sees, itself included; None for all before it.
        counted: how many keys there are; those after them are padding.
        narrow: whether HBM holds heads with length as the last dimension: a width below 128 is not padded then.
    """
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    mask: Any = FullMask((queries, keys))
    if causal:
        mask = CausalMask((queries, keys))
    if window is not None:
        mask = LocalMask((queries, keys), (window - 1, 0), 0)
    if counted is not None:
        mask = NumpyMask(np.broadcast_to(np.arange(keys) < counted, (queries, keys)))
    rows, columns = min(BLOCK, queries), min(BLOCK, keys)
    layout = QKVLayout.SEQ_MINOR if narrow else QKVLayout.HEAD_DIM_MINOR
    blocks = BlockSizes(
        rows, columns, columns, rows, columns, columns, use_fused_bwd_kernel=True,
        q_layout=layout, k_layout=layout, v_layout=layout,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        kernel: Any = make_splash_mha_single_device(
            MultiHeadMask([mask] * heads), block_sizes=blocks, attn_logits_soft_cap=soft_cap, interpret=on_cpu
        )
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    return jax.vmap(kernel)(query, key, value)


def gated_mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, act: Any = jax.nn.silu) -> jax.Array:
    """``down(act(gate(x)) * up(x))``; the barrier keeps the multiply with the product before it."""

    @again
    def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
        return act(gate) * up

    return linear(lax.optimization_barrier(gated(linear(x, gate), linear(x, up))), down)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over rows whose label is not negative, of logits [rows, classes]; float32 []."""
    return _cross_entropy(logits, labels)[0]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    total = jax.nn.logsumexp(logits.astype(jnp.float32), -1)
    picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], -1)[:, 0].astype(jnp.float32)
    counted = labels >= 0
    count = jnp.sum(counted)
    return jnp.sum(jnp.where(counted, total - picked, 0)) / count, (logits, labels, total, count)


def _cross_entropy_gradient(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None]:
    logits, labels, total, count = saved
    share = jnp.where(labels >= 0, gradient / count, 0)[:, None]
    weights = jnp.exp(logits.astype(jnp.float32) - total[:, None])
    placed = lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels[:, None]
    return ((weights - placed) * share).astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


@jax.custom_vjp
def embedding(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a table [rows, width]. The gradient adds up equal tokens in float32 before it writes rows."""
    return table[tokens]


def _embedding(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, Any]:
    return table[tokens], (tokens, table)


def _embedding_gradient(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    tokens, table = saved[0].reshape(-1), saved[1]
    order = jnp.argsort(tokens)
    tokens, rows = tokens[order], gradient.reshape(-1, gradient.shape[-1])[order]
    first = jnp.concatenate((jnp.ones(1, bool), tokens[1:] != tokens[:-1]))
    segments = jnp.cumsum(first) - 1
    sums = jax.ops.segment_sum(rows.astype(jnp.float32), segments, len(tokens), indices_are_sorted=True)
    places = jnp.full(len(tokens), table.shape[0], tokens.dtype).at[segments].set(tokens, indices_are_sorted=True)
    made = jnp.zeros(table.shape, table.dtype)
    return made.at[places].set(sums.astype(table.dtype), mode="drop", unique_indices=True), None


embedding.defvjp(_embedding, _embedding_gradient)


def subset(weights: dict[str, jax.Array], prefix: str) -> dict[str, jax.Array]:
    """The weights of a submodule, by its own names."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


gelu = again(functools.partial(jax.nn.gelu, approximate=False))
