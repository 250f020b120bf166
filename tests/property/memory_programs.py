"""Random programs of views, at places that depend on sizes and numbers: what lies in whose memory.

A program is a list of instructions, each four small integers, so that every list means something and hypothesis can
shrink it. ``run`` executes one in torch, eagerly or traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
Instruction = tuple[int, int, int, int]


def _half(t: Tensor, dim: int) -> int:
    return t.shape[dim] // 2


VIEWS: tuple[Callable[[Tensor, int, int], Tensor], ...] = (
    lambda t, k, n: t[k:],
    lambda t, k, n: t[_half(t, 0) :],
    lambda t, k, n: t[: _half(t, 0)],
    lambda t, k, n: t.chunk(2)[-1],
    lambda t, k, n: t.split(max(t.shape[0] - 1, 1))[0],
    lambda t, k, n: t.narrow(0, min(k, t.shape[0] - 1), 1),
    lambda t, k, n: t[::2],
    lambda t, k, n: t.select(0, -1) if t.dim() > 1 else t.unsqueeze(n % 2),
    lambda t, k, n: t.t() if t.dim() == 2 else t.unsqueeze(0),
    lambda t, k, n: t.reshape(-1),
    lambda t, k, n: t.unsqueeze(0).expand(2, *t.shape).select(0, 1),
    lambda t, k, n: t.as_strided((2,), (1,), t.shape[0] // 2) if t.is_contiguous() else t[:1],
    lambda t, k, n: t.detach(),
    lambda t, k, n: t.transpose(0, -1),
    lambda t, k, n: t.diagonal() if t.dim() == 2 else t.view(-1, 1),
    lambda t, k, n: t.view(torch.int64).view(torch.float64),
)

IN_PLACE: tuple[Callable[[Tensor, int], object], ...] = (
    lambda t, n: t.mul_(n + 1.5),
    lambda t, n: t.add_(n),
    lambda t, n: t[-1:].fill_(float(n)),
    lambda t, n: t.copy_(t.detach().sin()),
)

COMPUTED: tuple[Callable[[Tensor, int], Tensor], ...] = (
    lambda t, n: t * (n + 2),
    lambda t, n: t.sin() + t,
    lambda t, n: t.clone(),
    lambda t, n: t.detach() * 3,
    lambda t, n: t.sum(0, keepdim=True) + t,
)


def run(program: Sequence[Instruction], inputs: Sequence[Tensor], k: int) -> list[Any]:
    """Executes a program.

    Args:
        program: the instructions.
        inputs: the tensors that the pool starts with; the program may write to them.
        k: a place.

    Returns:
        What the instructions made, in order, and the inputs that some of them name.
    """
    pool = list(inputs)
    given: list[Any] = []
    for kind, first, second, number in program:
        t = pool[first % len(pool)]
        if kind < 5:
            view = VIEWS[second % len(VIEWS)](t, k, number)
            pool.append(view if view.numel() else t)
        elif kind < 7:
            pool.append(COMPUTED[second % len(COMPUTED)](t, number))
        elif kind == 7:
            IN_PLACE[second % len(IN_PLACE)](t, number)
        elif kind == 8:
            given.append(t)
        else:
            pool.append(t * pool[second % len(pool)].sum())
    return [*given, *pool[len(inputs) :]]


def inputs(rows: int, gradient: bool) -> tuple[list[Tensor], list[Tensor]]:
    """(leaves, inputs): matrices of so many rows, the second inside of a larger one, the third a vector by steps."""
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, 4), (rows + 2, 6), (2 * rows,))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for leaf in leaves:
        leaf.requires_grad_(gradient)
    first, second, third = (leaf * 1 for leaf in leaves)
    return leaves, [first, second[2:, 1:5], third[::2]]


def relations(tensors: Sequence[Any]) -> list[Any]:
    """What of tensors is as in eager: layouts, and for each two that share memory how far they are apart."""
    found: list[Any] = []
    for at, t in enumerate(tensors):
        found.append((tuple(t.shape), t.stride(), t.dtype, t.requires_grad))
        for other in tensors[:at]:
            if t.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
                found.append((at, t.storage_offset() - other.storage_offset()))
            else:
                found.append(None)
    return found
