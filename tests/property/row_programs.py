"""Programs over rows from tuples of small integers: pointwise work, reductions, what mixes elements of a row, parts of
rows and several together as rows, products.

Every value stays in a range in which float32 keeps about six digits: what grows is squashed before it is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Instruction = tuple[int, int, int, int]
Value = torch.Tensor

SHAPES = ((3, 17, 130), (2, 24, 40), (40, 40), (5, 300), (2, 3, 8, 64))


def inputs(shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Two tensors of the shape, a vector along rows and one along columns, and a square matrix for rows, all float32; a
    mask; an index of a row."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator) for _ in range(2))
    row, column = torch.randn(shape[-1], generator=generator), torch.randn(shape[-2], 1, generator=generator)
    matrix = torch.randn(shape[-1], shape[-1], generator=generator) / shape[-1] ** 0.5
    mask = torch.rand(shape, generator=generator) < 0.7
    index = torch.randint(0, shape[-1], (*shape[:-1], 1), generator=generator)
    return x, y, row, column, matrix, mask, index


UNARY: tuple[Callable[[Value], Value], ...] = (
    torch.tanh,
    torch.sigmoid,
    torch.neg,
    lambda v: torch.exp(torch.tanh(v)),
    lambda v: torch.rsqrt(torch.square(torch.tanh(v)) + 0.1),
    lambda v: v * 0.5 + 1,
)
BINARY: tuple[Callable[[Value, Value], Value], ...] = (
    torch.add,
    torch.sub,
    lambda a, b: torch.tanh(a) * torch.tanh(b),
    lambda a, b: torch.tanh(a) / (torch.square(torch.tanh(b)) + 0.5),
)
REDUCTIONS: tuple[Callable[[Value, int], Value], ...] = (
    lambda v, dim: v.mean(dim, keepdim=True),
    lambda v, dim: v.sum(dim, keepdim=True) * 0.1,
    lambda v, dim: v.var(dim, keepdim=True, correction=0),
    lambda v, dim: torch.logsumexp(v, dim, keepdim=True),
    lambda v, dim: torch.softmax(v, dim),
    lambda v, dim: torch.log_softmax(v, dim),
    lambda v, dim: torch.linalg.vector_norm(torch.square(v) + 0.1, dim=dim, keepdim=True) * 0.1,
    lambda v, dim: torch.rsqrt(v.square().mean(dim, keepdim=True) + 0.1),
)
SELECTING: tuple[Callable[[Value, int], Value], ...] = (  # their gradients jump where float32 rounds to a tie
    lambda v, dim: v.amax(dim, keepdim=True),
    lambda v, dim: v.amin(dim, keepdim=True),
)


def _part(size: int) -> int:
    """The largest half, third or fifth of a size."""
    return max(size // by for by in (2, 3, 5) if size % by == 0)


def run(
    program: Sequence[Instruction],
    shape: Sequence[int],
    tensors: Sequence[torch.Tensor],
    selecting: bool,
) -> list[torch.Tensor]:
    """The last values of a program.

    Args:
        program: instructions: what to do, two numbers that choose operands, a number of its own.
        shape: of the first two tensors.
        tensors: as ``inputs`` makes them.
        selecting: whether operations that pick one element by its value may be among them.
    """
    *floats, matrix, mask, index = tensors
    values = list(floats)
    reductions = REDUCTIONS + (SELECTING if selecting else ())
    for operation, first, second, number in program:
        left, right = values[-1 - first % len(values)], values[-1 - second % len(values)]
        whole = torch.broadcast_to(left, tuple(shape))
        dim = -1 if number % 3 else -2
        if operation <= 1:
            value = UNARY[number % len(UNARY)](left)
        elif operation <= 4:
            value = BINARY[number % len(BINARY)](left, right)
        elif operation <= 8:
            value = reductions[number % len(reductions)](whole if second % 2 else left, dim if left.dim() > 1 else -1)
        elif operation == 9:
            value = torch.where(mask, whole, right)
        elif operation == 10:
            value = (
                torch.softmax(whole.masked_fill(~mask, -torch.inf), -1)
                if number % 2
                else torch.gather(torch.tanh(whole), -1, index)
            )
        elif number % 3 == 2 and first % 2:
            groups = whole.reshape(*shape[:-2], -1, _part(shape[-1])) if second % 2 else whole.flatten(-2).unsqueeze(-2)
            value = (groups - reductions[number % len(reductions)](groups, -1)).reshape(tuple(shape))
        elif number % 3 == 2:
            value = torch.tanh(whole) @ (matrix if second % 2 else matrix.t())
        else:
            cut = 1 + number * 5 % (shape[-1] - 1)
            value = torch.cat((whole[..., cut:], -whole[..., :cut]), -1) if number % 2 else whole.cumsum(dim) * 0.1
        values.append(value)
    kept = values[len(floats) :][-3:]
    return [*kept, kept[-1].reshape(-1, kept[-1].shape[-1]).sum(0)]  # as a weight's gradient: over all rows
