"""Sums over all intervals of a row."""

from __future__ import annotations

import torch


def interval_sums(rows: torch.Tensor, first: int) -> torch.Tensor:
    """For rows [..., n], the sums [..., n, n] over intervals: at [i, j] of the elements from ``j + first`` to ``i``,
    both included, and 0 where there are none. ``first`` is 0 or 1."""
    length = rows.shape[-1]
    kept = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril(-first)
    return rows[..., None].expand(*rows.shape, length).masked_fill(~kept, 0).cumsum(-2)
