"""A layer of Qwen3-MoE: norms of queries and keys, and experts of which each token has eight of 128."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers

from bench.whole_models import jax_parts as parts
from bench.whole_models import mixtral
from bench.whole_models.case import Built, Case, Weights, made, prefill


@dataclasses.dataclass(frozen=True)
class Sizes(mixtral.Sizes):
    """Of a decoder half as wide as the 30B model, and of what it is given."""

    width: int = 1024
    hidden: int = 768
    kv_heads: int = 4
    experts: int = 128
    chosen: int = 8
    epsilon: float = 1e-6

    def config(self) -> Any:
        others: dict[str, Any] = {"head_dim": self.head, **mixtral.IMPLEMENTATIONS}
        return transformers.Qwen3MoeConfig(
            hidden_size=self.width, moe_intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, num_hidden_layers=1, vocab_size=self.vocabulary,
            num_experts=self.experts, num_experts_per_tok=self.chosen, norm_topk_prob=True,
            rms_norm_eps=self.epsilon, rope_parameters={"rope_type": "default", "rope_theta": self.base},
            **others,
        )  # fmt: skip


SMALL = Sizes(width=128, hidden=64, heads=4, kv_heads=2, experts=16, chosen=4, vocabulary=160, batch=2, length=128)


def twin(sizes: Sizes, on_cpu: bool, weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
    """(logits of the last token, keys, values)."""
    x = parts.embedding(weights["model.embed_tokens.weight"], tokens)
    own = parts.subset(weights, "model.layers.0.")
    hidden = parts.rms_norm(x, own["input_layernorm.weight"], sizes.epsilon)
    cosines, sines = parts.angles(jnp.arange(sizes.length), sizes.head, sizes.base, x.dtype)
    query, key, value = (
        parts.to_heads(hidden, own[f"self_attn.{name}_proj.weight"], sizes.head) for name in ("q", "k", "v")
    )
    query, key = (
        parts.rotated(parts.rms_norm(one, own[f"self_attn.{name}_norm.weight"], sizes.epsilon), cosines, sines)
        for one, name in ((query, "q"), (key, "k"))
    )
    attended = parts.attention(query, key, value, causal=True, on_cpu=on_cpu)
    x = x + parts.from_heads(attended, own["self_attn.o_proj.weight"])
    hidden = parts.rms_norm(x, own["post_attention_layernorm.weight"], sizes.epsilon)
    chosen = mixtral.experts(hidden.reshape(-1, sizes.width), parts.subset(own, "mlp."), sizes, on_cpu)
    last = parts.rms_norm((x + chosen.reshape(x.shape))[:, -1:], weights["model.norm.weight"], sizes.epsilon)
    return parts.linear(last, weights["lm_head.weight"]), key, value


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.Qwen3MoeForCausalLM(sizes.config()), small).eval()
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.length))

    def by_hand(weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
        return twin(sizes, small, weights, tokens)

    read = {"model.embed_tokens.weight": tokens.numel() * sizes.width * 2}
    return prefill(module, tokens, by_hand, read)


CASES = (Case("qwen3_moe_prefill", "Qwen3-MoE-like layer, 128 experts, top 8, prefill 4x2048", False, build, 1.0),)
