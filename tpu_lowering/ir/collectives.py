"""What the devices of a mesh do together: a program's collectives, along axes of its mesh.

On tensors of one process, as the reference interpreter runs them, every rank holds the same values and stands at the
place 0 of every axis.
"""

from __future__ import annotations

from typing import Literal

import torch

Axes = tuple[str, ...]
"""Axes of a mesh, outermost first; places along them are counted row by row."""

Reduction = Literal["sum", "avg", "product", "min", "max", "band", "bor", "bxor"]


def all_reduce(value: torch.Tensor, reduction: Reduction, axes: Axes, count: int) -> torch.Tensor:
    """The values of all ``count`` ranks along axes, reduced element by element."""
    if reduction == "sum":
        return value * count
    if reduction == "product":
        return value**count
    return value ^ value if reduction == "bxor" and count % 2 == 0 else value.clone()


def all_gather(value: torch.Tensor, dim: int, axes: Axes, count: int) -> torch.Tensor:
    """The values of all ranks along axes, one after the other along a dimension."""
    return torch.cat([value] * count, dim)


def reduce_scatter(value: torch.Tensor, reduction: Reduction, dim: int, axes: Axes, count: int) -> torch.Tensor:
    """The part of a rank, along a dimension, of what ``all_reduce`` gives."""
    return all_reduce(value, reduction, axes, count).chunk(count, dim)[0]


def all_to_all(value: torch.Tensor, split: int, joined: int, axes: Axes, count: int) -> torch.Tensor:
    """The parts that all ranks have for one, one after the other along the dimension ``joined``: each rank's value is
    cut along the dimension ``split`` into ``count`` parts, one for each rank."""
    return torch.cat([value.chunk(count, split)[0]] * count, joined)


def broadcast(value: torch.Tensor, source: int, axes: Axes, count: int) -> torch.Tensor:
    """The value of the rank at a place along axes."""
    return value.clone()


def own_part(value: torch.Tensor, dim: int, axes: Axes, count: int) -> torch.Tensor:
    """The part of a rank, of ``count`` equal ones along a dimension."""
    return value.chunk(count, dim)[0]


def after(value: torch.Tensor, other: torch.Tensor, axes: Axes, by_barrier: bool) -> torch.Tensor:
    """The value, not before another one is there.

    Args:
        by_barrier: whether the compiler keeps a barrier until it orders operations; XLA for the CPU does not. ``axes``
            are any of the mesh then.
    """
    return value.clone()


def mesh_coordinate(axes: Axes, count: int) -> torch.Tensor:
    """A rank's place along axes: int64 []."""
    return torch.zeros((), dtype=torch.int64)


EXCHANGES = (all_reduce, all_gather, reduce_scatter, all_to_all, broadcast)
"""Those for which something goes from rank to rank."""

COLLECTIVES = (*EXCHANGES, own_part, after, mesh_coordinate)
