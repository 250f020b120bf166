"""Values that are computed once and read from memory by all that uses them, and values that wait for one another."""

from __future__ import annotations

import torch


def materialize(value: torch.Tensor) -> torch.Tensor:
    """The value itself. A compiler that would compute it again inside each of its users writes it instead."""
    return value.clone()


def together(value: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both values, neither of which is there before the other is."""
    return value.clone(), other.clone()
