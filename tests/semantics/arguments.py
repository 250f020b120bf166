"""Small arguments for cases: the same at each call."""

from __future__ import annotations

import math

import torch


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers between -2 and 2, none of them twice, not in order."""
    count = math.prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return ((order * 4 + 1) / (count + 1) - 2).reshape(shape).to(dtype)


def ints(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Whole numbers between -3 and 3."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(math.prod(shape)), dtype=dtype)


def below(bound: int, *shape: int) -> torch.Tensor:
    """Positions below a bound, none of them twice where there are enough."""
    count = math.prod(shape)
    order = torch.randperm(max(bound, count), generator=torch.Generator().manual_seed(count))
    return (order[:count] % bound).reshape(shape)


def mask(*shape: int) -> torch.Tensor:
    """Three of four elements are true, the second is not."""
    return (torch.arange(math.prod(shape)) % 4 != 1).reshape(shape)


def only(size: int, *places: int) -> torch.Tensor:
    """A mask that is true at some places."""
    return torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(places, dtype=torch.int64), True)
