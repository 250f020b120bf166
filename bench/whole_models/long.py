"""Prefills of 32k tokens: a Llama layer that sees all of them, and a Mistral layer that sees a window."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import transformers

from bench.whole_models import jax_parts as parts
from bench.whole_models import llama
from bench.whole_models.case import Built, Case, Weights, made, prefill

LENGTH = 32768


@dataclasses.dataclass(frozen=True)
class Windowed(llama.Sizes):
    """Of a decoder with the geometry of Mistral-7B, and of what it is given."""

    window: int = 4096
    vocabulary: int = 32000
    batch: int = 1
    length: int = LENGTH
    base: float = 10000.0

    def config(self) -> Any:
        return transformers.MistralConfig(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, head_dim=self.head, num_hidden_layers=self.layers,
            vocab_size=self.vocabulary, max_position_embeddings=self.length, rms_norm_eps=self.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": self.base}, sliding_window=self.window,
            **llama.SDPA,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Twin(llama.Twin):
    """A decoder whose tokens see a window of those before them."""

    sizes: Windowed

    def layer(self, x: jax.Array, own: Weights) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(the result, keys, values) of a layer; keys and values are those that the next token sees."""
        hidden, window = self.norm(x, own["input_layernorm.weight"]), self.sizes.window
        query, key, value = self.heads(hidden, own, jnp.arange(x.shape[1]))
        attended = parts.attention(query, key, value, causal=True, on_cpu=self.on_cpu, window=window)
        return self.after(x, attended, own), key[:, :, 1 - window :], value[:, :, 1 - window :]


def causal(small: bool) -> Built:
    sizes = llama.Sizes(batch=1, length=LENGTH)
    return llama.prefill(dataclasses.replace(llama.SMALL, layers=1, batch=1) if small else sizes, small)


def windowed(small: bool) -> Built:
    sizes = Windowed()
    if small:
        sizes = Windowed(width=64, hidden=96, heads=4, kv_heads=2, head=128, vocabulary=160, length=256, window=80)
    module: Any = made(lambda: transformers.MistralForCausalLM(sizes.config()), small).eval()
    tokens = sizes.tokens(sizes.length)

    read = {"model.embed_tokens.weight": tokens.numel() * sizes.width * 2}
    return prefill(module, tokens, Twin(sizes, small).prefill, read)


CASES = (
    Case("llama_prefill_32k", "Llama-8B, 1 layer and head, prefill 1x32768", False, causal, 1.0),
    Case("mistral_prefill_32k", "Mistral-7B, 1 layer and head, window 4096, prefill 1x32768", False, windowed, 1.0),
)
