"""Two layers of Gemma-3: one that sees a window, and one that sees all; norms of queries and keys."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from jax import lax

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made, prefill

LAYERS = ("sliding_attention", "full_attention")
BASES = {"sliding_attention": 1e4, "full_attention": 1e6}

gelu = functools.partial(jax.nn.gelu, approximate=True)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a decoder with the geometry of the 4B model, and of what it is given."""

    width: int = 2560
    hidden: int = 10240
    heads: int = 8
    kv_heads: int = 4
    head: int = 256
    window: int = 1024
    vocabulary: int = 262144
    batch: int = 2
    length: int = 4096
    epsilon: float = 1e-6

    def config(self) -> Any:
        attention: dict[str, Any] = {"attn_implementation": "sdpa"}
        return transformers.Gemma3TextConfig(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, head_dim=self.head, query_pre_attn_scalar=self.head,
            num_hidden_layers=len(LAYERS), layer_types=list(LAYERS), sliding_window=self.window,
            vocab_size=self.vocabulary, rms_norm_eps=self.epsilon, **attention,
        )  # fmt: skip


SMALL = Sizes(width=64, hidden=96, heads=4, kv_heads=2, head=128, window=48, vocabulary=160, length=256)


def norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Over the last dimension, in float32, by one more than the weight."""
    wide = x.astype(jnp.float32)
    scaled = wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + epsilon)
    return (scaled * (1 + weight.astype(jnp.float32))).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Twin:
    """The decoder in JAX."""

    sizes: Sizes
    on_cpu: bool

    def attended(self, x: jax.Array, own: Weights, kind: str) -> tuple[jax.Array, ...]:
        """(the result, keys and values that a cache keeps) of a layer's attention."""
        sizes = self.sizes
        query, key, value = (parts.to_heads(x, own[f"{name}_proj.weight"], sizes.head) for name in ("q", "k", "v"))
        cosines, sines = parts.angles(jnp.arange(x.shape[1]), sizes.head, BASES[kind], x.dtype)
        query = parts.rotated(norm(query, own["q_norm.weight"], sizes.epsilon), cosines, sines)
        key = parts.rotated(norm(key, own["k_norm.weight"], sizes.epsilon), cosines, sines)
        window = sizes.window if kind == "sliding_attention" else None
        made = parts.attention(query, key, value, causal=True, on_cpu=self.on_cpu, window=window)
        kept = slice(None) if window is None else slice(1 - window, None)
        return parts.from_heads(made, own["o_proj.weight"]), key[:, :, kept], value[:, :, kept]

    def layer(self, x: jax.Array, own: Weights, kind: str) -> tuple[jax.Array, ...]:
        normed = functools.partial(norm, epsilon=self.sizes.epsilon)
        hidden = normed(x, own["input_layernorm.weight"])
        made, *cache = self.attended(hidden, parts.subset(own, "self_attn."), kind)
        x = x + normed(made, own["post_attention_layernorm.weight"])
        hidden = normed(x, own["pre_feedforward_layernorm.weight"])
        weights = (own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        made = parts.gated_mlp(hidden, *weights, act=gelu)
        return x + normed(made, own["post_feedforward_layernorm.weight"]), *cache

    def prefill(self, weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
        """(logits of the last token, keys and values that are kept)."""
        x, caches = parts.embedding(weights["model.embed_tokens.weight"], tokens), []
        x = x * jnp.asarray(self.sizes.width**0.5, x.dtype)
        for at, kind in enumerate(LAYERS):
            x, *cache = self.layer(x, parts.subset(weights, f"model.layers.{at}."), kind)
            caches += cache
        last = norm(x[:, -1:], weights["model.norm.weight"], self.sizes.epsilon)
        return parts.linear(last, weights["model.embed_tokens.weight"]), *caches


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.Gemma3ForCausalLM(sizes.config()), small).eval()
    module.tie_weights()
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.length))

    return prefill(module, tokens, Twin(sizes, small).prefill)


CASES = (Case("gemma3_prefill", "Gemma-3-4B, a window of 1024 and a full layer, prefill 2x4096", False, build, 1.0),)
