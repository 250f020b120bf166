"""The kernels that the cases call: Pallas functions as operators, operators with JAX implementations, Helion kernels.

A function named ``..._into`` overwrites its last argument. Arrays are two-dimensional unless a docstring says
otherwise, and ``ROWS`` divides their first dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import helion
import helion.language as hl
import jax
import jax.numpy as jnp
import torch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import kernel_op, register_kernel

ROWS = 4  # rows of a block


def rows(array: Any) -> pl.BlockSpec:
    """Blocks of ``ROWS`` rows, one after the other."""
    return pl.BlockSpec((ROWS, *array.shape[1:]), lambda i: (i, *[0] * (array.ndim - 1)))


def shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


# Pallas: whole writes ---------------------------------------------------------------------------------
def elementwise(body: Callable[..., None], inputs: Sequence[Any], outs: Sequence[Any], steps: int | None = None) -> Any:
    """A call over blocks of rows that is given its outs, as destination-passing kernels are.

    ``body`` takes references to the inputs, to the old outs and to the new outs.
    """
    return pl.pallas_call(
        body,
        grid=(outs[0].shape[0] // ROWS if steps is None else steps,),
        in_specs=[rows(array) for array in (*inputs, *outs)],
        out_specs=[rows(out) for out in outs],
        out_shape=[shape(out) for out in outs],
        input_output_aliases={len(inputs) + at: at for at in range(len(outs))},
    )(*inputs, *outs)


@kernel_op("cases::exp_into", mutates_args=("out",))
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = jnp.exp(x[...])

    return elementwise(body, [x], [out])[0]


@kernel_op("cases::add_into", mutates_args=("out",))
def add_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, y: Any, old: Any, out: Any) -> None:
        out[...] = x[...] + y[...]

    return elementwise(body, [x, y], [out])[0]


@kernel_op("cases::sum_and_round_into", mutates_args=("sums", "rounded"))
def sum_and_round_into(sums: torch.Tensor, x: torch.Tensor, rounded: torch.Tensor, y: torch.Tensor) -> None:
    """Row sums of ``x + y``, [rows, 1], and ``x + y`` in another type: outs between the inputs."""

    def body(x: Any, y: Any, old_sums: Any, old_rounded: Any, sums: Any, rounded: Any) -> None:
        value = x[...] + y[...]
        sums[...] = jnp.sum(value, axis=1, keepdims=True)
        rounded[...] = jnp.round(value).astype(rounded.dtype)

    return tuple(elementwise(body, [x, y], [sums, rounded]))


@kernel_op("cases::exp_and_neg_into", mutates_args=("k", "v"))
def exp_and_neg_into(x: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    def body(x: Any, old_k: Any, old_v: Any, k: Any, v: Any) -> None:
        k[...] = jnp.exp(x[...])
        v[...] = -x[...]

    return tuple(elementwise(body, [x], [k, v]))


@kernel_op("cases::write_then_read_into", mutates_args=("out",))
def write_then_read_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Stores to ``out``, then computes with what it stored."""

    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = jnp.exp(x[...])
        out[...] = out[...] * 2 + 1

    return elementwise(body, [x], [out])[0]


@kernel_op("cases::column_max_into", mutates_args=("out",))
def column_max_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """The maximum of each column, [1, columns]: all steps share one block, which the first initialises."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            out[...] = jnp.full_like(out, -jnp.inf)

        out[...] = jnp.maximum(out[...], jnp.max(x[...], axis=0, keepdims=True))

    return shared_block(body, x, out)


def shared_block(body: Callable[..., None], x: Any, out: Any) -> Any:
    whole = pl.BlockSpec(out.shape, lambda i: (0, 0))
    return pl.pallas_call(
        body,
        grid=(x.shape[0] // ROWS,),
        in_specs=[rows(x), whole],
        out_specs=whole,
        out_shape=shape(out),
        input_output_aliases={1: 0},
    )(x, out)


# Pallas: old contents matter --------------------------------------------------------------------------
@kernel_op("cases::accumulate", mutates_args=("out",))
def accumulate(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out += x``."""

    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = old[...] + x[...]

    return elementwise(body, [x], [out])[0]


@kernel_op("cases::step", mutates_args=("state", "out"))
def step(state: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    """``state += x``, and ``out = 2 * state``."""

    def body(x: Any, old_state: Any, old_out: Any, state: Any, out: Any) -> None:
        value = old_state[...] + x[...]
        state[...] = value
        out[...] = 2 * value

    return tuple(elementwise(body, [x], [state, out]))


@kernel_op("cases::exp_first_half", mutates_args=("out",))
def exp_first_half(x: torch.Tensor, out: torch.Tensor) -> None:
    """Writes the first half of the rows: its grid ends there."""

    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = jnp.exp(x[...])

    return elementwise(body, [x], [out], steps=out.shape[0] // ROWS // 2)[0]


@kernel_op("cases::running_column_max", mutates_args=("out",))
def running_column_max(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out = max(out, columns of x)``, [1, columns]: one block for all steps, begun with the old contents."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            out[...] = old[...]

        out[...] = jnp.maximum(out[...], jnp.max(x[...], axis=0, keepdims=True))

    return shared_block(body, x, out)


@kernel_op("cases::add_columns", mutates_args=("out",))
def add_columns(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out += columns of x``, [1, columns], as atomic adds of all steps into one block."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            out[...] = old[...]

        out[...] += jnp.sum(x[...], axis=0, keepdims=True)

    return shared_block(body, x, out)


@kernel_op("cases::write_pages", mutates_args=("cache",))
def write_pages(pages: torch.Tensor, values: torch.Tensor, cache: torch.Tensor) -> None:
    """``cache[pages[i]] = values[i]``: the page numbers are data, known when the kernel runs.

    ``pages`` is int32 [n], ``values`` [n, length, width], ``cache`` [pages, length, width].
    """

    def body(pages: Any, values: Any, old: Any, cache: Any) -> None:
        cache[...] = values[...]

    page = (None, *cache.shape[1:])
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(values.shape[0],),
        in_specs=[
            pl.BlockSpec(page, lambda i, pages: (i, 0, 0)),
            pl.BlockSpec(page, lambda i, pages: (pages[i], 0, 0)),
        ],
        out_specs=pl.BlockSpec(page, lambda i, pages: (pages[i], 0, 0)),
    )
    return pl.pallas_call(body, grid_spec=grid, out_shape=shape(cache), input_output_aliases={2: 0})(
        pages, values, cache
    )


# JAX: any layout of the work --------------------------------------------------------------------------
@kernel_op("cases::double_into", mutates_args=("out",))
def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Any shape, and any element types; no Pallas in it."""
    return jnp.broadcast_to(x * 2, out.shape).astype(out.dtype)


# Operators of a library, with an eager implementation of their own ------------------------------------
library = torch.library.Library("cases", "FRAGMENT")


def define(schema: str, eager: Callable[..., None], kernel: Callable[..., Any], tags: Sequence[torch.Tag] = ()) -> Any:
    """Defines an operator that runs ``eager`` in torch and ``kernel`` in a program."""
    name = schema.partition("(")[0]
    library.define(schema, tags=tuple(tags))
    library.impl(name, eager, "CPU")
    torch.library.register_fake(f"cases::{name}", lambda *args, **kwargs: _outs(name, args, kwargs), lib=library)
    operator = getattr(torch.ops.cases, name).default
    register_kernel(operator)(kernel)
    return operator


def _outs(name: str, args: Any, kwargs: Any) -> Any:
    """What an operator's fake implementation returns: its outs, if its schema returns them."""
    schema = getattr(torch.ops.cases, name).default._schema
    if not schema.returns:
        return None
    given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
    outs = [given[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return outs[0] if len(outs) == 1 else tuple(outs)


def _exp_maybe(x: torch.Tensor, out: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    torch.exp(x, out=out)
    if mask is not None:
        mask.copy_(x > 0)


def _exp_maybe_kernel(x: Any, out: Any, mask: Any = None) -> Any:
    return jnp.exp(x) if mask is None else (jnp.exp(x), x > 0)


exp_maybe = define("exp_maybe(Tensor x, Tensor(a!) out, Tensor(b!)? mask=None) -> ()", _exp_maybe, _exp_maybe_kernel)


def _split_rows(x: torch.Tensor, outs: list[torch.Tensor]) -> None:
    for out, part in zip(outs, x.split([out.shape[0] for out in outs]), strict=True):
        out.copy_(part)


def _split_rows_kernel(x: Any, outs: list[Any]) -> Any:
    starts = [sum(out.shape[0] for out in outs[:at]) for at in range(len(outs))]
    return [x[start : start + out.shape[0]] for start, out in zip(starts, outs, strict=True)]


split_rows = define("split_rows(Tensor x, Tensor(a!)[] outs) -> ()", _split_rows, _split_rows_kernel)


def _scale_out(x: torch.Tensor, factor: float, *, out: torch.Tensor) -> torch.Tensor:
    return torch.mul(x, factor, out=out)


scale_out = define(
    "scale_out(Tensor x, float factor, *, Tensor(a!) out) -> Tensor(a!)",
    _scale_out,
    lambda x, factor, *, out: x * factor,
    tags=(torch.Tag.out,),
)


def _extrema_out(x: torch.Tensor, *, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return low.copy_(x.amin(1)), high.copy_(x.amax(1))


extrema_out = define(
    "extrema_out(Tensor x, *, Tensor(a!) low, Tensor(b!) high) -> (Tensor(a!), Tensor(b!))",
    _extrema_out,
    lambda x, *, low, high: (jnp.min(x, axis=1), jnp.max(x, axis=1)),
    tags=(torch.Tag.out,),
)


# Helion -----------------------------------------------------------------------------------------------
pallas_kernel = functools.partial(helion.kernel, static_shapes=True, backend="pallas")


@pallas_kernel(config=helion.Config(block_sizes=[32]))
def helion_gate_flat_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = torch.where(x[tile] > 0.5, x[tile] * torch.sigmoid(x[tile]), 0.25) * y[tile]


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = torch.exp(x[tile])


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_add_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] + y[tile]


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_accumulate(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = out[tile] + x[tile]


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_step(state: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        value = state[tile] + x[tile]
        state[tile] = value
        out[tile] = 2 * value


@pallas_kernel(config=helion.Config(block_sizes=[8]))
def helion_sum_and_double_into(sums: torch.Tensor, x: torch.Tensor, doubled: torch.Tensor, y: torch.Tensor) -> None:
    """Row sums of ``x + y``, and twice ``x + y`` in bfloat16."""
    for row in hl.tile(x.size(0)):
        value = x[row, :] + y[row, :]
        sums[row] = value.sum(dim=1)
        doubled[row, :] = (2 * value).to(doubled.dtype)


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_exp(x: torch.Tensor) -> torch.Tensor:
    """Allocates its result itself."""
    out = torch.empty_like(x)
    for tile in hl.tile(out.size()):
        out[tile] = torch.exp(x[tile])
    return out


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_exp_first_half(x: torch.Tensor, out: torch.Tensor) -> None:
    for row, column in hl.tile([out.size(0) // 2, out.size(1)]):
        out[row, column] = torch.exp(x[row, column])


@pallas_kernel(config=helion.Config(block_sizes=[8, 128]))
def helion_write_then_read_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = torch.exp(x[tile])
        out[tile] = out[tile] * 2 + 1


@pallas_kernel(config=helion.Config(block_sizes=[8]))
def helion_add_columns(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out += columns of x``, [columns]: every step adds to the same tile."""
    for row in hl.tile(x.size(0)):
        hl.atomic_add(out, [slice(None)], x[row, :].sum(0))


@pallas_kernel(config=helion.Config(block_sizes=[16, 8]))
def helion_column_max_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """The maximum of each column, [columns], by an inner loop over rows."""
    for column in hl.tile(x.size(1)):
        largest = hl.full([column], float("-inf"))
        for row in hl.tile(x.size(0)):
            largest = torch.maximum(largest, x[row, column].amax(0))
        out[column] = largest
