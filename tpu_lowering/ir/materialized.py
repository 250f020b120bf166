"""Values that are computed once and read from memory by all that uses them, and values that wait for one another."""

from __future__ import annotations

import torch


def materialize(value: torch.Tensor) -> torch.Tensor:
    """The value itself. A compiler that would compute it again inside each of its users writes it instead."""
    return value.clone()


def together(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The values, none of which is there before all others are."""
    return tuple(value.clone() for value in values)
