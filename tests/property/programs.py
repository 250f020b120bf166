"""Random programs over buffers: allocations, views, partial fills, in-place operators, kernel calls, duplicates.

A program is a list of instructions, each four small integers, so that every list means something and
hypothesis can shrink it. ``run`` executes one in torch: eagerly as the oracle, with undefined memory filled
with NaN, or traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import torch
from jax.experimental import pallas as pl

import tpu_lowering

Instruction = tuple[int, int, int, int]
SHAPES = ((4, 8), (8, 4), (2, 8))


def _rows(x, out, rows, body):
    """A Pallas call over the first ``rows`` rows of 2-D arrays, one row a step, ``out`` aliased."""
    block = pl.BlockSpec((1, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        body,
        grid=(rows,),
        in_specs=[block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        input_output_aliases={1: 0},
    )(x, out)


@tpu_lowering.kernel_op("property::overwrite", mutates_args=("out",))
def overwrite(x: torch.Tensor, out: torch.Tensor) -> None:
    """Ignores what ``out`` held."""
    return x * 2 + 1


@tpu_lowering.kernel_op("property::overwrite_rows", mutates_args=("out",))
def overwrite_rows(x: torch.Tensor, out: torch.Tensor) -> None:
    """Stores every element of every block."""

    def body(x_ref, _, out_ref):
        out_ref[...] = x_ref[...] - 3

    return _rows(x, out, x.shape[0], body)


@tpu_lowering.kernel_op("property::overwrite_half", mutates_args=("out",))
def overwrite_half(x: torch.Tensor, out: torch.Tensor) -> None:
    """Stores the first half of the rows; the others keep what they held."""

    def body(x_ref, _, out_ref):
        out_ref[...] = x_ref[...] + 5

    return _rows(x, out, max(1, x.shape[0] // 2), body)


@tpu_lowering.kernel_op("property::accumulate", mutates_args=("out",))
def accumulate(x: torch.Tensor, out: torch.Tensor) -> None:
    """Adds to what ``out`` held."""

    def body(x_ref, old_ref, out_ref):
        out_ref[...] = old_ref[...] + x_ref[...]

    return _rows(x, out, x.shape[0], body)


@tpu_lowering.kernel_op("property::two_outs", mutates_args=("a", "b"))
def two_outs(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Overwrites ``a``, adds to ``b``."""
    return jnp.tanh(x), b + x


@tpu_lowering.kernel_op("property::update_and_return", mutates_args=("out",))
def update_and_return(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes one column of ``out`` and has a result of its own."""
    return out.at[:, 0].set(x[:, 0]), x + 7


VIEWS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda t: t[: t.shape[0] // 2],
    lambda t: t[t.shape[0] // 2 :],
    lambda t: t[:, : t.shape[1] // 2],
    lambda t: t[:, 1::2],
    lambda t: t[::2],
    lambda t: t.t(),
    lambda t: t.view(-1, t.shape[0]) if t.is_contiguous() else t,
    lambda t: t[1:],
    lambda t: t[:, 2:6],
)

IN_PLACE: tuple[Callable[[torch.Tensor, int], object], ...] = (
    lambda t, n: t.fill_(n),
    lambda t, n: t.add_(n),
    lambda t, n: t.mul_(0.5),
    lambda t, n: t.zero_(),
    lambda t, n: t[0].fill_(n) if t.shape[0] else t,
    lambda t, n: t[:, -1].add_(n) if t.shape[1] else t,
)

SINGLE = (overwrite, overwrite_rows, overwrite_half, accumulate)


def _like(pool: Sequence[torch.Tensor], at: int, wanted: torch.Tensor) -> torch.Tensor:
    """The first tensor from position ``at`` on, around the end, with the shape of ``wanted``."""
    for step in range(len(pool)):
        found = pool[(at + step) % len(pool)]
        if found.shape == wanted.shape:
            return found
    return wanted


def run(
    program: Sequence[Instruction], inputs: Sequence[torch.Tensor], empty: Callable[..., torch.Tensor]
) -> list[torch.Tensor]:
    """Executes a program.

    Args:
        program: the instructions.
        inputs: 2-D float32 tensors that the pool starts with; the program may write to them.
        empty: makes undefined memory of a given shape.

    Returns:
        Every tensor that any instruction made, in order.
    """
    pool = list(inputs)
    for kind, first, second, third in program:
        x = pool[first % len(pool)]
        if kind == 0:
            pool.append(empty(SHAPES[second % len(SHAPES)]))
        elif kind == 1:
            pool.append(torch.full(SHAPES[second % len(SHAPES)], float(third)))
        elif kind == 2:
            view = VIEWS[second % len(VIEWS)](x)
            pool.append(view if view.numel() and view.dim() == 2 else x)
        elif kind == 3:
            pool.append(x * 2 - third)
        elif kind == 4:
            IN_PLACE[second % len(IN_PLACE)](x, third)
        elif kind == 5:
            SINGLE[third % len(SINGLE)](x, _like(pool, second, x))
        elif kind == 6:
            two_outs(x, _like(pool, second, x), _like(pool, third, x))
        elif kind == 7:
            pool.append(update_and_return(x, _like(pool, second, x)))
        elif kind == 8:
            pool.append(x)
        elif kind == 9:
            _like(pool, second, x).copy_(x.clone())
        elif kind == 10:
            pool.append(empty(tuple(x.shape)))
        else:
            pool.append(x.clone())
    return pool[len(inputs) :]


def poisoned(shape: Sequence[int]) -> torch.Tensor:
    """Undefined memory for the oracle."""
    return torch.full(tuple(shape), float("nan"))


def inputs() -> list[torch.Tensor]:
    """Two inputs, equal in every call."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in SHAPES[:2]]
