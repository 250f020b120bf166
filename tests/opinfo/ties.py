"""Operators that give positions of elements: of several equal elements, eager may name any.

Their positions are compared by what stands there; a sort's must also be a permutation. ``stable=True`` defines
the positions, and they are compared as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The place of ``dim`` among the arguments after the input, and its default.
DIM = {
    "argsort": (0, -1),
    "kthvalue": (1, -1),
    "median": (0, None),
    "mode": (0, -1),
    "nanmedian": (0, None),
    "sort": (0, -1),
    "topk": (1, -1),
}
PERMUTATIONS = ("argsort", "sort")


def determined(name: str, sample: Any) -> Callable[[Any], Any] | None:
    """What of a result is defined, or None if all of it is.

    Args:
        name: of the operator.
        sample: its input and arguments.
    """
    if name not in DIM or sample.kwargs.get("stable"):
        return None
    place, default = DIM[name]
    dim = sample.kwargs.get("dim", sample.args[place] if len(sample.args) > place else default)
    if dim is None:
        return None
    given = sample.input.detach()
    elements = given if given.ndim else given.reshape(1)

    def of(result: Any) -> Any:
        values, positions = (None, result) if isinstance(result, torch.Tensor) else result
        flat = positions.reshape(elements.shape) if name in PERMUTATIONS else _with_dim(positions, elements, dim)
        order = flat.sort(dim).values if name in PERMUTATIONS else None
        return values, order, elements.gather(dim, flat), torch.zeros_like(positions)  # for its type

    return of


def _with_dim(positions: torch.Tensor, elements: torch.Tensor, dim: int) -> torch.Tensor:
    """Positions with the dimension that was reduced."""
    if positions.ndim == elements.ndim:
        return positions
    return positions.reshape(1) if positions.ndim == 0 and elements.ndim == 1 else positions.unsqueeze(dim)
