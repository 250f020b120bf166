"""A small decoder, and how its tensors lie on a mesh."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        projected = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (each.view(batch, length, self.heads, -1).transpose(1, 2) for each in projected)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class GatedMlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads), GatedMlp(width, inner)
        self.input_norm, self.inner_norm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_norm(x))
        return x + self.mlp(self.inner_norm(x))


class Llama(nn.Module):
    def __init__(self, layers: int = 2, words: int = 64, width: int = 32, heads: int = 8, inner: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.norm, self.lm_head = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


SHARDINGS: dict[str, Any] = {
    "embed.weight": ("model", None),
    "layers.*.self_attn.[qkv]_proj.weight": ("model", None),
    "layers.*.self_attn.o_proj.weight": (None, "model"),
    "layers.*.mlp.gate_proj.weight": ("model",),
    "layers.*.mlp.up_proj.weight": ("model", None),
    "layers.*.mlp.down_proj.weight": (None, "model"),
    "lm_head.weight": ("model", None),
    "input_ids": ("data",),
    "labels": ("data", None),
    "layers.*.mlp": ("data", None, None),
}


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight rows of sixteen words, and the next ones."""
    words = torch.randint(0, 64, (8, 17), generator=torch.Generator().manual_seed(seed))
    return words[:, :-1].contiguous(), words[:, 1:].contiguous()
