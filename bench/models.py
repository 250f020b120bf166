"""Whole models: the demo decoder's prefill, and one decode step over a static cache that is updated in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tpu_lowering.demo import decoder
from tpu_lowering.demo.kernels import rms_norm_into, swiglu_into

PREFILL = 128  # tokens

LAYERS = 2
BATCH = 8
HEADS = 8
WIDTH = 128  # of a head
LENGTH = 2048  # of the cache
HIDDEN = HEADS * WIDTH
CACHE_SHAPE = (BATCH, HEADS, LENGTH, WIDTH)  # of keys, and of values; 64 MiB each in float32


def prefill() -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    """The demo decoder with Helion kernels, and the tokens of one sequence, int64 [1, 128]."""
    model = decoder(kernels=True)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, use_cache=False).logits

    return logits, (torch.zeros(1, PREFILL, dtype=torch.int64),)


class Block(nn.Module):
    """A decoder block for one token a sequence; norms and the gate of the MLP are Helion kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ParameterList([torch.empty(HIDDEN), torch.empty(HIDDEN)])
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor, position: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Any:
        """``x`` [batch, hidden]; writes the token's key and value into the cache at ``position``, int64 [1]."""
        x = x + self.attend(normed(x, self.norms[0]), position, keys, values)
        hidden = normed(x, self.norms[1])
        gate, up = self.gate(hidden), self.up(hidden)
        gated = torch.empty_like(gate)
        swiglu_into(gate, up, gated)
        return x + self.down(gated)

    def attend(self, x: torch.Tensor, position: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Any:
        query, key, value = self.qkv(x).view(BATCH, 3, HEADS, 1, WIDTH).unbind(1)
        keys.index_copy_(2, position, key)
        values.index_copy_(2, position, value)
        scores = query @ keys.transpose(2, 3) * WIDTH**-0.5
        seen = torch.arange(LENGTH) <= position
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return self.out((weights @ values).view(BATCH, HIDDEN))


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    rms_norm_into(x, weight, out, 1e-6)
    return out


class DecodeStep(nn.Module):
    """One token a sequence through every block; the caches are arguments, mutated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, position: torch.Tensor, *caches: torch.Tensor) -> torch.Tensor:
        """``caches`` are keys and values of the first block, of the second, and so on."""
        for index, block in enumerate(self.blocks):
            x = block(x, position, caches[2 * index], caches[2 * index + 1])
        return x


def decode_step() -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    """A step and its arguments: hidden states [batch, hidden], a position, and ``2 * LAYERS`` cache tensors."""
    caches = [torch.empty(CACHE_SHAPE) for _ in range(2 * LAYERS)]
    return DecodeStep(), (torch.empty(BATCH, HIDDEN), torch.zeros(1, dtype=torch.int64), *caches)
