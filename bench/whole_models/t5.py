"""Two layers of T5's encoder, whose attention adds a bias that depends on the distance."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

FARTHEST = 128
BUCKETS = 32

gelu = functools.partial(jax.nn.gelu, approximate=True)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of an encoder with the geometry of T5-large 1.1, and of what it is given."""

    width: int = 1024
    hidden: int = 2816
    heads: int = 16
    head: int = 64
    layers: int = 2
    vocabulary: int = 32128
    batch: int = 16
    length: int = 512
    epsilon: float = 1e-6

    def config(self) -> Any:
        attention: dict[str, Any] = {"attn_implementation": "sdpa"}
        return transformers.T5Config(
            d_model=self.width, d_ff=self.hidden, num_heads=self.heads, d_kv=self.head, num_layers=self.layers,
            vocab_size=self.vocabulary, feed_forward_proj="gated-gelu", layer_norm_epsilon=self.epsilon,
            relative_attention_num_buckets=BUCKETS, relative_attention_max_distance=FARTHEST, **attention,
        )  # fmt: skip


SMALL = Sizes(width=64, hidden=96, heads=2, vocabulary=160, batch=2, length=160)


def buckets(length: int) -> np.ndarray[Any, Any]:
    """int32 [2 * length - 1]: the bucket of each distance of a key from a query, from 1 - length on."""
    distance = np.arange(1 - length, length)
    half = BUCKETS // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), 1).astype(np.float32) / exact
    scaled = exact + (np.log(far) / np.log(FARTHEST / exact) * (half - exact)).astype(np.int32)
    within = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(scaled, half - 1))
    return (within + half * (distance > 0)).astype(np.int32)


def bias(table: jax.Array, length: int) -> jax.Array:
    """[1, heads, length, length] of a table [buckets, heads]."""
    distances = np.arange(length) - np.arange(length)[:, None] + length - 1
    chosen = jax.nn.one_hot(buckets(length)[distances], BUCKETS, dtype=table.dtype, axis=0)
    return jnp.einsum("bh,bqk->hqk", table, chosen)[None]


def attention(query: jax.Array, key: jax.Array, value: jax.Array, added: jax.Array, on_cpu: bool) -> jax.Array:
    """Of [batch, heads, length, width], with a bias [1, heads, length, length] and no scale."""
    if on_cpu:
        weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", query, key) + added, -1)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, value)
    block = min(parts.BLOCK, query.shape[2])
    sizes = BlockSizes(block_q=block, block_k_major=block, block_k=block, block_b=1)

    def one(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return flash_attention(query[None], key[None], value[None], added, block_sizes=sizes)[0]

    return jax.vmap(one)(query, key, value)


def layer(sizes: Sizes, on_cpu: bool, x: jax.Array, own: Weights, added: jax.Array) -> jax.Array:
    hidden = parts.rms_norm(x, own["layer.0.layer_norm.weight"], sizes.epsilon)
    query, key, value = (
        parts.to_heads(hidden, own[f"layer.0.SelfAttention.{name}.weight"], sizes.head) for name in ("q", "k", "v")
    )
    attended = attention(query, key, value, added, on_cpu)
    x = x + parts.from_heads(attended, own["layer.0.SelfAttention.o.weight"])
    hidden = parts.rms_norm(x, own["layer.1.layer_norm.weight"], sizes.epsilon)
    weights = (own[f"layer.1.DenseReluDense.{name}.weight"] for name in ("wi_0", "wi_1", "wo"))
    return x + parts.gated_mlp(hidden, *weights, act=gelu)


def twin(sizes: Sizes, on_cpu: bool, weights: Weights, tokens: jax.Array) -> jax.Array:
    """[batch, length, width]: what the last norm gives."""
    x = parts.embedding(weights["shared.weight"], tokens)
    table = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    added = bias(table, sizes.length)
    for at in range(sizes.layers):
        x = layer(sizes, on_cpu, x, parts.subset(weights, f"encoder.block.{at}."), added)
    return parts.rms_norm(x, weights["encoder.final_layer_norm.weight"], sizes.epsilon)


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.T5EncoderModel(sizes.config()), small).eval()
    module.tie_weights()
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.length))

    def function(tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens).last_hidden_state

    def by_hand(weights: Weights, tokens: jax.Array) -> jax.Array:
        return twin(sizes, small, weights, tokens)

    return Built(module, function, (tokens,), by_hand, read={"shared.weight": tokens.numel() * sizes.width * 2})


CASES = (Case("t5_forward", "T5-large encoder, 2 layers, forward 16x512", False, build, 1.0),)
