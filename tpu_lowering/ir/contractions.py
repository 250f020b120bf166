"""Products that sum over several axes of two values at once, and give those that are left in any order."""

from __future__ import annotations

import torch


def contract(equation: str, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.einsum(equation, left, right)``, plus a bias that broadcasts with it; of the operands' type, to which it
    is rounded once."""
    wide = torch.promote_types(left.dtype, torch.float32)
    result = torch.einsum(equation, left.to(wide), right.to(wide))
    return (result if bias is None else result + bias.to(wide)).to(left.dtype)
