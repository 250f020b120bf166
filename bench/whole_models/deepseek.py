"""A layer of a DeepSeek-V3-like decoder: attention to keys and values that come of latents, and a dense MLP."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made, prefill


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a decoder, and of what it is given.

    Attributes:
        query_rank, rank: widths of the latents of queries, and of keys and values.
        plain, turned: elements of a head of queries and keys without and with rotary embedding.
        value: elements of a head of values.
    """

    width: int = 4096
    hidden: int = 11008
    heads: int = 32
    query_rank: int = 1536
    rank: int = 512
    plain: int = 128
    turned: int = 64
    value: int = 128
    vocabulary: int = 32000
    batch: int = 2
    length: int = 4096
    base: float = 10000.0
    epsilon: float = 1e-6

    def config(self) -> Any:
        attention: dict[str, Any] = {"attn_implementation": "sdpa"}
        return transformers.DeepseekV3Config(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.heads, q_lora_rank=self.query_rank, kv_lora_rank=self.rank,
            qk_nope_head_dim=self.plain, qk_rope_head_dim=self.turned, v_head_dim=self.value, num_hidden_layers=1,
            first_k_dense_replace=1, vocab_size=self.vocabulary, rms_norm_eps=self.epsilon, num_mtp_layers=0,
            rope_parameters={"rope_type": "default", "rope_theta": self.base}, **attention,
        )  # fmt: skip


SMALL = Sizes(width=64, hidden=96, heads=2, query_rank=48, rank=32, vocabulary=160, length=128)


def in_halves(weight: jax.Array) -> jax.Array:
    """Rows [..., turned, in] whose neighbours turn together, ordered so that halves turn together."""
    return jnp.concatenate((weight[..., 0::2, :], weight[..., 1::2, :]), -2)


def quarter_turned(weight: jax.Array) -> jax.Array:
    """Rows [..., turned, in] that make what a rotary embedding multiplies by sines."""
    first, second = jnp.split(weight, 2, -2)
    return jnp.concatenate((-second, first), -2)


def attended(sizes: Sizes, on_cpu: bool, x: jax.Array, own: Weights) -> tuple[jax.Array, ...]:
    """(the result, latents [batch, 1, length, rank], rotated keys [batch, 1, length, turned]) of the attention.

    A head of queries is [plain, turned * cosines, quarter turned * sines] and one of keys [plain, rotated, rotated]:
    each is one product, and what is rotated needs no shuffle of lanes and no concatenation of activations.
    """
    cosines, sines = parts.angles(jnp.arange(x.shape[1]), sizes.turned, sizes.base, x.dtype)
    latent = parts.linear(x, own["q_a_proj.weight"])
    latent = parts.rms_norm(latent, own["q_a_layernorm.weight"], sizes.epsilon)
    expand = own["q_b_proj.weight"].reshape(sizes.heads, -1, sizes.query_rank)
    turned = in_halves(expand[:, sizes.plain :])
    expand = jnp.concatenate((expand[:, : sizes.plain], turned, quarter_turned(turned)), 1)
    factors = jnp.concatenate((jnp.ones((x.shape[1], sizes.plain), x.dtype), cosines, sines), -1)
    query = jnp.einsum("bsr,hdr->bhsd", latent, expand) * factors

    compress = own["kv_a_proj_with_mqa.weight"]
    latent = parts.linear(x, compress[: sizes.rank])
    latent = parts.rms_norm(latent, own["kv_a_layernorm.weight"], sizes.epsilon)
    shared = parts.rotated(parts.linear(x, in_halves(compress[sizes.rank :]))[:, None], cosines, sines)
    expand = own["kv_b_proj.weight"].reshape(sizes.heads, -1, sizes.rank)
    plain = jnp.pad(expand[:, : sizes.plain], ((0, 0), (0, 2 * sizes.turned), (0, 0)))
    twice = jnp.pad(jnp.concatenate((shared, shared), -1), ((0, 0), (0, 0), (0, 0), (sizes.plain, 0)))
    key = jnp.einsum("bsr,hdr->bhsd", latent, plain) + twice
    value = jnp.einsum("bsr,hdr->bhsd", latent, expand[:, sizes.plain :])
    scale = (sizes.plain + sizes.turned) ** -0.5
    made = parts.attention(query, key, value, causal=True, on_cpu=on_cpu, scale=scale)
    return parts.from_heads(made, own["o_proj.weight"]), latent[:, None], shared


def twin(sizes: Sizes, on_cpu: bool, weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
    """(logits of the last token, latents, rotated keys)."""
    x = parts.embedding(weights["model.embed_tokens.weight"], tokens)
    own = parts.subset(weights, "model.layers.0.")
    hidden = parts.rms_norm(x, own["input_layernorm.weight"], sizes.epsilon)
    made, *cache = attended(sizes, on_cpu, hidden, parts.subset(own, "self_attn."))
    x = x + made
    hidden = parts.rms_norm(x, own["post_attention_layernorm.weight"], sizes.epsilon)
    x = x + parts.gated_mlp(hidden, *(own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))
    last = parts.rms_norm(x[:, -1:], weights["model.norm.weight"], sizes.epsilon)
    return parts.linear(last, weights["lm_head.weight"]), *cache


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.DeepseekV3ForCausalLM(sizes.config()), small).eval()
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.length))

    def by_hand(weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
        return twin(sizes, small, weights, tokens)

    read = {"model.embed_tokens.weight": tokens.numel() * sizes.width * 2}
    return prefill(module, tokens, by_hand, read)


CASES = (Case("deepseek_prefill", "DeepSeek-V3-like layer, 32 heads, dense MLP, prefill 2x4096", False, build, 1.0),)
