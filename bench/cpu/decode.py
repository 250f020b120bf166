"""A decode step of four attention layers, whose caches of keys and values it updates at one position."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.cpu import sides

LAYERS, HEADS, DEPTH = 4, 8, 64
WIDTH = HEADS * DEPTH
CALLS = 10  # a sample
SIDES = ("ours", "eager", "inductor")
CASES = {f"{mebibytes} MiB": mebibytes for mebibytes in (16, 128, 512)}
"""All caches together."""


class Layer(nn.Module):
    """Attention of one new token over a cache, float32."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("keys", torch.zeros(1, HEADS, length, DEPTH))
        self.register_buffer("values", torch.zeros(1, HEADS, length, DEPTH))

    def forward(self, x: torch.Tensor, at: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.inside(x).view(1, 1, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        self.keys.index_copy_(2, at, key)
        self.values.index_copy_(2, at, value)
        found = nn.functional.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=mask)
        return x + self.outside(found.transpose(1, 2).reshape(1, 1, WIDTH))


def model(length: int) -> nn.Module:
    """The layers, each with caches for ``length`` tokens; the same weights each time."""
    torch.manual_seed(0)
    layers = nn.ModuleList(Layer(length) for _ in range(LAYERS))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor, at: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x, at, mask)
            return x

    return Decoder().eval()


def length_of(mebibytes: int) -> int:
    """How many tokens caches of so many MiB hold."""
    return mebibytes * 2**20 // (2 * LAYERS * WIDTH * 4)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The entry of one case; seconds of its sides are those of one step."""
    length = length_of(CASES[name])
    given = (torch.randn(1, 1, WIDTH), torch.tensor([5]), (torch.arange(length) <= 64)[None, None, None])
    with torch.inference_mode():
        expected = model(length)(*given)
    builders = {side: functools.partial(build, side, length, given, expected) for side in SIDES}
    measured = sides.Sides(builders).measure(rounds, CALLS)
    return {"sides": measured, "note": f"float32, {length} tokens, {CALLS} steps a sample"}


def build(side: str, length: int, given: tuple[torch.Tensor, ...], expected: torch.Tensor) -> Callable[[], Any]:
    """A step of one side; its result has been compared with eager's."""
    check = sides.closeness(expected, 1e-4, 1e-4)
    decoder = model(length)
    if side == "eager":
        return sides.called(decoder, given, check)
    backend = "helion_tpu" if side == "ours" else "inductor"
    return sides.called(torch.compile(decoder, backend=backend, fullgraph=True, dynamic=False), given, check)
