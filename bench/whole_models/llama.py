"""A Llama decoder with the geometry of the 8B model: prefill, decode, training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from jax import lax

from bench.whole_models import case
from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

IGNORED = -100
SDPA: dict[str, Any] = {"attn_implementation": "sdpa"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a decoder, and of what it is given.

    Attributes:
        width, hidden, heads, kv_heads, head, layers, vocabulary: of the model.
        batch, length: of the tokens; in a decode, ``length`` is the cache's.
    """

    width: int = 4096
    hidden: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    layers: int = 1
    vocabulary: int = 128256
    batch: int = 4
    length: int = 2048
    base: float = 500000.0
    epsilon: float = 1e-5

    def config(self) -> Any:
        return transformers.LlamaConfig(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, head_dim=self.head, num_hidden_layers=self.layers,
            vocab_size=self.vocabulary, max_position_embeddings=8192, rms_norm_eps=self.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": self.base}, **SDPA,
        )  # fmt: skip

    def tokens(self, length: int) -> torch.Tensor:
        """int64 [batch, length]."""
        return torch.randint(self.vocabulary, (self.batch, length))


SMALL = Sizes(width=64, hidden=96, heads=4, kv_heads=2, head=128, layers=2, vocabulary=160, batch=2, length=128)


def model(sizes: Sizes, small: bool) -> Any:
    return made(lambda: transformers.LlamaForCausalLM(sizes.config()), small)


@dataclasses.dataclass(frozen=True)
class Twin:
    """The decoder in JAX."""

    sizes: Sizes
    on_cpu: bool

    def heads(self, x: jax.Array, own: Weights, positions: jax.Array) -> tuple[jax.Array, ...]:
        """Queries, keys and values, the first two rotated."""
        cosines, sines = parts.angles(positions, self.sizes.head, self.sizes.base, x.dtype)
        query, key, value = (
            parts.to_heads(x, own[f"self_attn.{name}_proj.weight"], self.sizes.head) for name in ("q", "k", "v")
        )
        return parts.rotated(query, cosines, sines), parts.rotated(key, cosines, sines), value

    def norm(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return parts.rms_norm(x, weight, self.sizes.epsilon)

    def after(self, x: jax.Array, attended: jax.Array, own: Weights) -> jax.Array:
        """A layer from attention's result on."""
        x = x + parts.from_heads(attended, own["self_attn.o_proj.weight"])
        hidden = self.norm(x, own["post_attention_layernorm.weight"])
        return x + parts.gated_mlp(hidden, *(own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))

    def layer(self, x: jax.Array, own: Weights) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(the result, keys, values) of a layer over a whole sequence."""
        hidden = self.norm(x, own["input_layernorm.weight"])
        query, key, value = self.heads(hidden, own, jnp.arange(x.shape[1]))
        attended = parts.attention(query, key, value, causal=True, on_cpu=self.on_cpu)
        return self.after(x, attended, own), key, value

    def trunk(self, weights: Weights, tokens: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """(what the last layer gives, keys and values of all layers)."""
        x, caches = parts.embedding(weights["model.embed_tokens.weight"], tokens), []
        for at in range(self.sizes.layers):
            x, key, value = self.layer(x, parts.subset(weights, f"model.layers.{at}."))
            caches += [key, value]
        return x, caches

    def prefill(self, weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
        """(logits of the last token, keys and values)."""
        x, caches = self.trunk(weights, tokens)
        last = self.norm(x[:, -1:], weights["model.norm.weight"])
        return parts.linear(last, weights["lm_head.weight"]), *caches

    def loss(self, weights: Weights, tokens: jax.Array) -> jax.Array:
        x, _ = self.trunk(weights, tokens)
        logits = parts.linear(self.norm(x, weights["model.norm.weight"]), weights["lm_head.weight"])
        labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
        return parts.cross_entropy(logits.reshape(-1, self.sizes.vocabulary), labels.reshape(-1))

    def decode(self, weights: Weights, token: jax.Array, *caches: jax.Array) -> tuple[Any, ...]:
        """(logits, caches with the token's keys and values) of one token a sequence; a layer's caches are the number of
        tokens that it has, int64 [], keys and values."""
        x, updated = parts.embedding(weights["model.embed_tokens.weight"], token), []
        for at in range(self.sizes.layers):
            own = parts.subset(weights, f"model.layers.{at}.")
            length, *held = caches[3 * at : 3 * at + 3]
            query, *new = self.heads(self.norm(x, own["input_layernorm.weight"]), own, length[None])
            keys, values = (
                lax.dynamic_update_slice(cache, one, (0, 0, length, 0)) for cache, one in zip(held, new, strict=True)
            )
            updated += [length + 1, keys, values]
            x = self.after(x, self.attended_to_cache(query, keys, values, length), own)
        last = self.norm(x, weights["model.norm.weight"])
        return parts.linear(last, weights["lm_head.weight"]), *updated

    def attended_to_cache(self, query: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array) -> jax.Array:
        """Attention of one token a sequence, as XLA's own operations."""
        grouped = query.reshape(query.shape[0], self.sizes.kv_heads, -1, self.sizes.head)
        scores = jnp.einsum("bgrd,bgtd->bgrt", grouped, keys, preferred_element_type=jnp.float32)
        seen = jnp.arange(keys.shape[2]) <= length
        weights = jax.nn.softmax(jnp.where(seen, scores * self.sizes.head**-0.5, -jnp.inf), -1)
        return jnp.einsum("bgrt,bgtd->bgrd", weights.astype(query.dtype), values).reshape(query.shape)


def _embedded(sizes: Sizes, tokens: torch.Tensor, itemsize: int) -> dict[str, int]:
    return {"model.embed_tokens.weight": tokens.numel() * sizes.width * itemsize}


def prefill(sizes: Sizes, small: bool) -> Built:
    """Logits of the last token, and the cache."""
    module, tokens = model(sizes, small).eval(), sizes.tokens(sizes.length)

    return case.prefill(module, tokens, Twin(sizes, small).prefill, _embedded(sizes, tokens, 2))


def decode(sizes: Sizes, small: bool) -> Built:
    """One token a sequence over a static cache."""
    module, token = model(sizes, small).eval(), sizes.tokens(1)
    dtype = torch.float32 if small else torch.bfloat16
    cache: Any = transformers.StaticCache(config=module.config, max_cache_len=sizes.length)
    cache.early_initialization(sizes.batch, sizes.kv_heads, sizes.head, dtype, torch.device("cpu"))
    for layer in cache.layers:
        layer.cumulative_length.fill_(sizes.length // 2)
        if small:
            layer.keys.normal_()
            layer.values.normal_()
    held = tuple(x for layer in cache.layers for x in (layer.cumulative_length, layer.keys, layer.values))

    def function(token: torch.Tensor) -> torch.Tensor:
        return module(token, cache=cache, use_cache=True).logits

    return Built(module, function, (token,), Twin(sizes, small).decode, held, _embedded(sizes, token, 2))


def training(sizes: Sizes, small: bool) -> Built:
    """The loss of the next tokens."""
    module, tokens = model(sizes, small).train(), sizes.tokens(sizes.length)

    def function(tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens, labels=tokens, use_cache=False).loss

    return Built(module, function, (tokens,), Twin(sizes, small).loss, read=_embedded(sizes, tokens, 2))


def _case(name: str, note: str, trains: bool, build: Any, sizes: Sizes, limit: float = 1.0) -> Case:
    def both(small: bool) -> Built:
        return build(SMALL if small else sizes, small)

    return Case(name, note, trains, both, limit)


CASES = (
    _case("llama_prefill", "Llama-8B, 1 layer and head, prefill 4x2048", False, prefill, Sizes()),
    _case("llama_prefill_2", "Llama-8B, 2 layers and head, prefill 4x2048", False, prefill, Sizes(layers=2)),
    _case(
        "llama_decode", "Llama-8B, 1 layer and head, decode 32, cache 4096", False, decode,
        Sizes(batch=32, length=4096),
    ),
    _case("llama_training", "Llama-8B, 1 layer, vocabulary 128k, training 4x2048", True, training, Sizes()),
)  # fmt: skip
