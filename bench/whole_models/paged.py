"""One token a sequence of a Llama layer, whose keys and values are in pages."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from torch import nn
from torch.nn import functional as F
from transformers.models.llama import modeling_llama

from bench.whole_models import jax_parts as parts
from bench.whole_models import llama
from bench.whole_models.case import Built, Case, Weights, made


@dataclasses.dataclass(frozen=True)
class Sizes(llama.Sizes):
    """Of a layer and its pages; ``length`` is what a sequence's pages hold.

    Attributes:
        page: tokens of a page.
        spare: pages that no sequence has.
        block: pages that the kernel takes at once.
    """

    batch: int = 32
    length: int = 4096
    page: int = 64
    spare: int = 64
    block: int = 8

    @property
    def table(self) -> int:
        """Pages of a sequence."""
        return self.length // self.page

    @property
    def pages(self) -> int:
        return self.batch * self.table + self.spare


SMALL = Sizes(width=64, hidden=96, heads=4, kv_heads=2, head=128, batch=3, length=64, page=8, spare=5, block=4)


class Layer(nn.Module):
    """A layer that writes a token's keys and values into pages, and gathers the pages of each sequence."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, config = sizes, sizes.config()
        own = modeling_llama.LlamaDecoderLayer(config, 0)
        self.self_attn, self.mlp = own.self_attn, own.mlp
        self.input_layernorm, self.post_attention_layernorm = own.input_layernorm, own.post_attention_layernorm
        self.rotary = modeling_llama.LlamaRotaryEmbedding(config)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """[batch, 1, width] of the same; keys and values are [heads, pages, page, head], the table [batch, n]."""
        hidden, own = self.input_layernorm(x), self.self_attn
        query, key, value = (
            one(hidden).unflatten(-1, (-1, self.sizes.head)).transpose(1, 2)
            for one in (own.q_proj, own.k_proj, own.v_proj)
        )
        angles = self.rotary(hidden, lengths[:, None])
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *angles)
        page = table.gather(1, (lengths // self.sizes.page)[:, None])[:, 0]
        for pages, new in ((keys, key), (values, value)):
            pages[:, page, lengths % self.sizes.page] = new[:, :, 0].transpose(0, 1)
        held = (self.gathered(pages, table) for pages in (keys, values))
        seen = torch.arange(self.sizes.length) <= lengths[:, None]
        attended = F.scaled_dot_product_attention(query, *held, attn_mask=seen[:, None, None], enable_gqa=True)
        x = x + own.o_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def gathered(self, pages: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """[batch, heads, length, head]."""
        return pages[:, table].permute(1, 0, 2, 3, 4).flatten(2, 3)


@dataclasses.dataclass(frozen=True)
class Twin(llama.Twin):
    """The layer in JAX."""

    sizes: Sizes

    def step(
        self, weights: Weights, x: jax.Array, lengths: jax.Array, table: jax.Array, keys: jax.Array, values: jax.Array
    ) -> tuple[jax.Array, ...]:
        """(the result, keys, values)."""
        hidden = self.norm(x[:, 0], weights["input_layernorm.weight"])
        cosines, sines = (one[:, None] for one in parts.angles(lengths, self.sizes.head, self.sizes.base, x.dtype))
        query, key, value = (
            jnp.einsum("bm,hdm->bhd", hidden, weight.reshape(-1, self.sizes.head, weight.shape[-1]))
            for weight in (weights[f"self_attn.{name}_proj.weight"] for name in ("q", "k", "v"))
        )
        query, key = parts.rotated(query, cosines, sines), parts.rotated(key, cosines, sines)
        page = jnp.take_along_axis(table, (lengths // self.sizes.page)[:, None], 1)[:, 0]
        keys, values = (
            pages.at[:, page, lengths % self.sizes.page].set(new.swapaxes(0, 1))
            for pages, new in ((keys, key), (values, value))
        )
        attended = self.attended_to_pages(query * self.sizes.head**-0.5, keys, values, lengths + 1, table)
        return self.after(x, attended[:, :, None], weights), keys, values

    def attended_to_pages(
        self, query: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array, table: jax.Array
    ) -> jax.Array:
        """[batch, heads, head] of the same."""
        if not self.on_cpu:
            return paged_attention(
                query, keys, values, lengths.astype(jnp.int32), table.astype(jnp.int32),
                pages_per_compute_block=self.sizes.block,
            )  # fmt: skip
        keys, values = (
            pages[:, table].reshape(len(pages), len(table), -1, self.sizes.head) for pages in (keys, values)
        )
        grouped = query.reshape(len(table), self.sizes.kv_heads, -1, self.sizes.head)
        scores = jnp.einsum("bgrd,gbtd->bgrt", grouped, keys)
        seen = (jnp.arange(self.sizes.length) < lengths[:, None])[:, None, None]
        made = jnp.einsum("bgrt,gbtd->bgrd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1), values)
        return made.reshape(query.shape)


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: Layer(sizes), small).eval()
    dtype = torch.float32 if small else torch.bfloat16
    shape = (sizes.kv_heads, sizes.pages, sizes.page, sizes.head)
    keys, values = (torch.randn(shape) if small else torch.empty(shape, dtype=dtype) for _ in range(2))
    lengths = torch.randint(sizes.length, (sizes.batch,))
    table = torch.randperm(sizes.pages)[: sizes.batch * sizes.table].reshape(sizes.batch, -1)

    def function(x: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return module(x, lengths, table, keys, values)

    x = torch.randn(sizes.batch, 1, sizes.width, dtype=dtype)
    return Built(module, function, (x, lengths, table), Twin(sizes, small).step, (keys, values))


CASES = (Case("paged_decode", "Llama-8B layer, decode 32, pages of 64, 4096 tokens each", False, build, 1.0),)
