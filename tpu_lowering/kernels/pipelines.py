"""Pipelines inside a kernel as plain loops over blocks, for machines without DMA engines.

``pltpu.emit_pipeline`` copies each block of an array in HBM to one of two buffers in VMEM while the body works on the
other. On a CPU there is one memory: the body gets the block's place in the array itself.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

EmitPipeline = Callable[..., Callable[..., None]]
"""A function with the arguments of ``pltpu.emit_pipeline``."""


def with_pipelines(function: types.FunctionType, emit: EmitPipeline) -> types.FunctionType:
    """A copy of a kernel's source function in whose module ``pltpu.emit_pipeline`` is another function."""
    if "pltpu" not in function.__globals__ or emit is pltpu.emit_pipeline:
        return function
    names = {**function.__globals__, "pltpu": _Pltpu(emit)}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _Pltpu:
    """``jax.experimental.pallas.tpu`` with another ``emit_pipeline``."""

    def __init__(self, emit: EmitPipeline) -> None:
        self.emit_pipeline = emit

    def __getattr__(self, name: str) -> Any:
        return getattr(pltpu, name)


def emit_pipeline(
    body: Callable[..., None],
    *,
    grid: Sequence[Any],
    in_specs: Sequence[pl.BlockSpec] = (),
    out_specs: Sequence[pl.BlockSpec] = (),
    _explicit_indices: bool = False,
    **options: Any,
) -> Callable[..., None]:
    """What ``pltpu.emit_pipeline`` computes, in the order of its grid, on the arrays themselves.

    Where blocks are not whole parts of their arrays, or an option asks for more than speed, it is JAX's own.
    """
    specs = [*sequence(in_specs), *sequence(out_specs)]
    indexed: dict[str, Any] = {"_explicit_indices": True} if _explicit_indices else {}
    pipeline = pltpu.emit_pipeline(body, grid=tuple(grid), in_specs=in_specs, out_specs=out_specs, **indexed, **options)

    def run(*refs: Any, **more: Any) -> None:
        if more or options or not all(map(divides, specs, refs)):
            pipeline(*refs, **more)
            return

        def step(number: Any, _: None) -> None:
            indices = _indices(number, grid)
            blocks = [_block(spec, ref, indices) for spec, ref in zip(specs, refs, strict=True)]
            body(*([indices] if _explicit_indices else []), *blocks)

        jax.lax.fori_loop(0, math.prod(grid), step, None)

    return run


def sequence(specs: Any) -> Sequence[pl.BlockSpec]:
    """Block specs, of which a single one may stand for itself."""
    return specs if isinstance(specs, (list, tuple)) else (specs,)


def divides(spec: pl.BlockSpec, ref: Any) -> bool:
    """Whether an array consists of whole blocks of plain sizes."""
    block = spec.block_shape
    return block is not None and all(
        size is None or (isinstance(size, int) and extent % size == 0)
        for size, extent in zip(block, ref.shape, strict=True)
    )


def _indices(number: Any, grid: Sequence[Any]) -> tuple[Any, ...]:
    """The position in a grid of a step, the last dimension fastest."""
    found: list[Any] = []
    for extent in reversed(grid):
        extent = jnp.asarray(extent, jnp.int32)
        found.append(jax.lax.rem(number, extent))
        number = jax.lax.div(number, extent)
    return tuple(reversed(found))


def _block(spec: pl.BlockSpec, ref: Any, indices: Sequence[Any]) -> Any:
    """A step's block, as a reference into its array."""
    assert spec.block_shape is not None and spec.index_map is not None
    sizes: list[Any] = list(spec.block_shape)
    places = [
        index if size is None else pl.ds(index * size, size)
        for index, size in zip(spec.index_map(*indices), sizes, strict=True)
    ]
    return ref.at[tuple(places)]
