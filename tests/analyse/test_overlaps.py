"""Whether views share elements, against the elements themselves."""

from __future__ import annotations

import random

import torch

from tpu_lowering.analyse import overlaps


def view(base: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A random strided view."""
    while True:
        ndim = rng.randint(0, 3)
        shape = [rng.randint(0, 4) for _ in range(ndim)]
        stride = [rng.choice([0, 1, 2, 3, 5, 8]) for _ in range(ndim)]
        offset = rng.randint(0, base.numel() - 1)
        span = offset + sum(max(size - 1, 0) * step for size, step in zip(shape, stride, strict=True))
        if span < base.numel():
            return base.as_strided(shape, stride, offset)


def test_random_views_share_what_their_elements_share() -> None:
    rng = random.Random(0)
    base = torch.arange(40)
    shared = 0
    for _ in range(3000):
        a, b = view(base, rng), view(base, rng)
        common = bool(set(a.flatten().tolist()) & set(b.flatten().tolist()))
        assert overlaps.share_elements(a, b) is common
        shared += common
    assert shared > 200


def test_large_views_of_a_cache() -> None:
    """Keys and values of a cache that interleaves them; nothing of that size is allocated to find out."""
    cache = torch.empty(4096, 2, 256, 8, 128, device="meta")
    assert not overlaps.share_elements(cache[:, 0], cache[:, 1])
    assert overlaps.share_elements(cache[:, 0], cache[7:9])
    assert not overlaps.share_elements(cache[..., ::2], cache[..., 1::2])


def test_types_of_other_widths() -> None:
    memory = torch.zeros(16, dtype=torch.float32)
    assert overlaps.share_elements(memory[2:4], memory.view(torch.int16)[5:7])
    assert not overlaps.share_elements(memory[2:4], memory.view(torch.int16)[2:4])


def test_repeated_elements() -> None:
    x = torch.zeros(4, 4)
    assert overlaps.repeats_elements(x[0].expand(4, 4))
    assert not overlaps.repeats_elements(x[:1].expand(1, 4))
    assert not overlaps.repeats_elements(x.t())
    assert not overlaps.repeats_elements(x[:0].expand(0, 4))
