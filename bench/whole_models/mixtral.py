"""Layers of a Mixtral-like decoder: attention, and experts of which each token has two."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from jax import lax
from jax.experimental.pallas.ops.tpu.megablox import gmm

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

IMPLEMENTATIONS: dict[str, Any] = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a decoder, and of what it is given."""

    width: int = 2048
    hidden: int = 4096
    heads: int = 16
    kv_heads: int = 8
    head: int = 128
    experts: int = 8
    chosen: int = 2
    vocabulary: int = 32000
    batch: int = 4
    length: int = 2048
    base: float = 1000000.0
    epsilon: float = 1e-5

    def config(self) -> transformers.MixtralConfig:
        return transformers.MixtralConfig(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, head_dim=self.head, num_hidden_layers=1, vocab_size=self.vocabulary,
            num_local_experts=self.experts, num_experts_per_tok=self.chosen, rms_norm_eps=self.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": self.base}, **IMPLEMENTATIONS,
            max_position_embeddings=8192, sliding_window=None,
        )  # fmt: skip


SMALL = Sizes(width=128, hidden=256, heads=4, kv_heads=2, experts=4, vocabulary=160, batch=2, length=128)


def grouped(x: jax.Array, weight: jax.Array, counts: jax.Array, on_cpu: bool) -> jax.Array:
    """Rows [rows, in], sorted by expert, by each expert's [out, in]."""
    if on_cpu:
        numbers = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
        return lax.ragged_dot_general(x, weight, counts, numbers)
    return gmm(x, weight, counts, x.dtype, (512, 1024, 1024), transpose_rhs=True)


def experts(x: jax.Array, own: Weights, sizes: Sizes, on_cpu: bool) -> jax.Array:
    """The experts' part of a layer, of tokens [rows, width]."""
    scores = jax.nn.softmax(parts.linear(x, own["gate.weight"]).astype(jnp.float32), -1)
    share, which = lax.top_k(scores, sizes.chosen)
    share = share / jnp.sum(share, -1, keepdims=True)
    order = jnp.argsort(which.reshape(-1))
    counts = jnp.bincount(which.reshape(-1), length=sizes.experts).astype(jnp.int32)
    rows = x[order // sizes.chosen]
    gate, up = jnp.split(grouped(rows, own["experts.gate_up_proj"], counts, on_cpu), 2, -1)
    made = grouped(jax.nn.silu(gate) * up, own["experts.down_proj"], counts, on_cpu)
    back = jnp.argsort(order)
    mine = made[back].reshape(*which.shape, -1)
    return jnp.einsum("tkm,tk->tm", mine, share.astype(x.dtype))


def twin(sizes: Sizes, on_cpu: bool, weights: Weights, tokens: jax.Array) -> jax.Array:
    """Logits of the last token."""
    x = parts.embedding(weights["model.embed_tokens.weight"], tokens)
    own = parts.subset(weights, "model.layers.0.")
    hidden = parts.rms_norm(x, own["input_layernorm.weight"], sizes.epsilon)
    cosines, sines = parts.angles(jnp.arange(sizes.length), sizes.head, sizes.base, x.dtype)
    query, key, value = (
        parts.to_heads(hidden, own[f"self_attn.{name}_proj.weight"], sizes.head) for name in ("q", "k", "v")
    )
    query, key = parts.rotated(query, cosines, sines), parts.rotated(key, cosines, sines)
    attended = parts.attention(query, key, value, causal=True, on_cpu=on_cpu)
    x = x + parts.from_heads(attended, own["self_attn.o_proj.weight"])
    hidden = parts.rms_norm(x, own["post_attention_layernorm.weight"], sizes.epsilon)
    chosen = experts(hidden.reshape(-1, sizes.width), parts.subset(own, "mlp."), sizes, on_cpu)
    last = (x + chosen.reshape(x.shape))[:, -1:]
    return parts.linear(parts.rms_norm(last, weights["model.norm.weight"], sizes.epsilon), weights["lm_head.weight"])


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.MixtralForCausalLM(sizes.config()), small).eval()
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.length))

    def function(tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens, use_cache=False, logits_to_keep=1).logits

    def by_hand(weights: Weights, tokens: jax.Array) -> jax.Array:
        return twin(sizes, small, weights, tokens)

    read = {"model.embed_tokens.weight": tokens.numel() * sizes.width * 2}
    return Built(module, function, (tokens,), by_hand, read=read)


CASES = (Case("mixtral_prefill", "Mixtral-like layer, 8 experts, top 2, prefill 4x2048", False, build, 1.0),)
