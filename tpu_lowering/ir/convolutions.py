"""Convolutions of each channel by a kernel of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def convolve_channels(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, before: int, after: int, dilation: int
) -> torch.Tensor:
    """``F.conv1d`` of [n, c, length], padded by zeros (or cut, where that is negative) at both ends, with a weight
    [c, 1, taps] and a bias [c]: of the type of ``x``, to which it is rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    given = None if bias is None else bias.to(wide)
    made = F.conv1d(F.pad(x.to(wide), (before, after)), weight.to(wide), given, dilation=dilation, groups=x.shape[1])
    return made.to(x.dtype)
