"""What generated kernels do with rows where ATen's operator is nothing that a kernel can run."""

from __future__ import annotations

import torch


def running_sum(rows: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Sums of each row's elements up to each place, in ``dtype``: along the last dimension, -1, or the one
    before it, -2."""
    return rows.cumsum(dim, dtype=dtype)


def group_sums(values: torch.Tensor, dims: list[int], size: int) -> torch.Tensor:
    """Sums of float32 values over some dimensions, and over each ``size`` elements one after another of the last one,
    which stand in the place of each of those."""
    sums = values.sum(dims, True) if dims else values
    groups = sums.unflatten(-1, (-1, size)).sum(-1, True)
    return groups.expand(*groups.shape[:-1], size).flatten(-2)


def row_product(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None, transposed: bool, dtype: torch.dtype
) -> torch.Tensor:
    """The matrix product of rows [..., k] and a matrix [k, n], or [n, k] if it is transposed, plus a bias of one row,
    in ``dtype``."""
    result = left.reshape(-1, left.shape[-1]) @ (right.t() if transposed else right)
    result = result if bias is None else bias.reshape(-1) + result
    return result.to(dtype).reshape(*left.shape[:-1], -1)


def rescaled(total: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """A sum of ``exp(z - before)``, each element with a factor of its own or none, as one of ``exp(z - after)``.

    Where ``before`` is -inf, or the sum is 0, all elements so far were -inf, and add nothing to a sum that has others.
    """
    moved = torch.where((total == 0) | (before == -torch.inf), 0, total * torch.exp(before - after))
    return torch.where(before == after, total, moved)


def recentred(total: torch.Tensor, before: torch.Tensor, after: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """A sum of ``(z - before) ** 2`` over ``count`` elements with the mean ``before``, as one of ``(z - after) ** 2``
    (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979)."""
    moved = before - after
    return torch.where(count == 0, total, total + count * moved * moved)
