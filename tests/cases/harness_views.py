"""Kernels and small functions for the cases of views and surroundings, beside ``case_kernels`` and ``harness``.

Every Helion kernel stands beside the torch function that eager runs in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helion
import helion.language as hl
import jax
import jax.numpy as jnp
import torch
from jax.experimental import pallas as pl

from tests.cases.case_kernels import pallas_kernel
from tpu_lowering import kernel_op


@kernel_op("cases_views::exp_any_into", mutates_args=("out",))
def exp_any_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out = exp(x)``, any shape."""
    return jnp.exp(x)


@kernel_op("cases_views::accumulate_any", mutates_args=("out",))
def accumulate_any(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out += x``, any shape."""
    return out + x


@kernel_op("cases_views::add_any_into", mutates_args=("out",))
def add_any_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """``out = x + y``, any shape."""
    return x + y


@kernel_op("cases_views::exp_blocks_into", mutates_args=("out",))
def exp_blocks_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out = exp(x)`` in Pallas blocks of [4, 8, 128], or of the last of these for fewer dimensions."""
    block = (4, 8, 128)[-x.ndim :]

    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = jnp.exp(x[...])

    return pl.pallas_call(
        body,
        grid=tuple(-(-size // step) for size, step in zip(x.shape, block, strict=True)),
        in_specs=[pl.BlockSpec(block, lambda *ids: ids)] * 2,
        out_specs=pl.BlockSpec(block, lambda *ids: ids),
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        input_output_aliases={1: 0},
    )(x, out)


@kernel_op("cases_views::add_column_sums", mutates_args=("out",))
def add_column_sums(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out += columns of x``, [1, columns], in Pallas blocks of 8 rows; the rows past the edge are masked."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            out[...] = old[...]

        row = 8 * pl.program_id(0) + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        out[...] += jnp.sum(jnp.where(row < rows, x[...], 0), axis=0, keepdims=True)

    rows, columns = x.shape
    whole = pl.BlockSpec((1, columns), lambda i: (0, 0))
    return pl.pallas_call(
        body,
        grid=(-(-rows // 8),),
        in_specs=[pl.BlockSpec((8, columns), lambda i: (i, 0)), whole],
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        input_output_aliases={1: 0},
    )(x, out)


@pallas_kernel(autotune_effort="none")
def helion_exp_any_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = torch.exp(x[tile])


@pallas_kernel(autotune_effort="none")
def helion_accumulate_any(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] += x[tile]


@pallas_kernel(autotune_effort="none")
def helion_add_any_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] + y[tile]


@pallas_kernel(config=helion.Config(block_sizes=[4, 8, 128]))
def helion_exp_blocks_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Three dimensions."""
    for tile in hl.tile(out.size()):
        out[tile] = torch.exp(x[tile])


@pallas_kernel(config=helion.Config(block_sizes=[8]))
def helion_row_sums_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for row in hl.tile(x.size(0)):
        out[row] = torch.exp(x[row, :]).sum(-1)


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_row_sums_by_blocks_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for row in hl.tile(x.size(0)):
        total = hl.zeros([row], dtype=torch.float32)
        for column in hl.tile(x.size(1)):
            total += torch.exp(x[row, column]).sum(-1)
        out[row] = total


@pallas_kernel(config=helion.Config(block_sizes=[8]))
def helion_column_min_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for column in hl.tile(x.size(1)):
        out[column] = torch.amin(torch.exp(x[:, column]), 0)


@pallas_kernel(config=helion.Config(block_sizes=[8]))
def helion_add_one_and_widen_into(x: torch.Tensor, plain: torch.Tensor, wide: torch.Tensor) -> None:
    """``plain = x + 1`` and ``wide[i, j] = 2 x[i]``."""
    for row in hl.tile(x.size(0)):
        plain[row] = x[row] + 1
        wide[row, :] = x[row][:, None] * 2


def torch_exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.exp())


def torch_accumulate(x: torch.Tensor, out: torch.Tensor) -> None:
    out.add_(x)


def torch_add_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x + y)


def torch_row_sums_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.exp().sum(-1))


def torch_column_min_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.exp().amin(0))


def torch_add_one_and_widen_into(x: torch.Tensor, plain: torch.Tensor, wide: torch.Tensor) -> None:
    plain.copy_(x + 1)
    wide.copy_((2 * x)[:, None].expand_as(wide))


# A kernel, what eager runs in its place, and the name of the operand that it writes.
EXPS = ((exp_any_into, exp_any_into), (helion_exp_any_into, torch_exp_into))
ACCUMULATES = ((accumulate_any, accumulate_any), (helion_accumulate_any, torch_accumulate))
ADDS = ((add_any_into, add_any_into), (helion_add_any_into, torch_add_into))

Kernel = Callable[..., Any]
IDS = ("operator", "helion")


def made(*shape: int) -> Callable[[], tuple[torch.Tensor]]:
    """Makes one random tensor of a shape, as ``check`` wants its arguments."""
    return lambda: (torch.randn(shape),)


def written(kernel: Kernel) -> str:
    """How the harness calls the operand ``out`` of a kernel."""
    name = kernel.name if hasattr(kernel, "fn") else kernel._schema.name
    return f"{name.rpartition('::')[2]}.out"
