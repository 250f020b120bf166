"""Programs of several devices, for benchmarks and tests: from torch, and by hand in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import torch
from jax.sharding import NamedSharding, PartitionSpec

from tpu_lowering import aot, compat
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.kernels import jaxprs
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.runtime.aot.capture import Captured
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.slices import slice_of

FOUR_BY_FOUR = Mesh(("data", "model"), (4, 4), tuple(range(16)))
Argument = tuple[tuple[int, ...], PartitionSpec]
"""A global shape, and how it lies on the mesh."""


def by_hand(
    function: Callable[..., Any],
    arguments: Sequence[Argument],
    results: Any,
    target: str = "v5e:4x4",
    mesh: Mesh = FOUR_BY_FOUR,
    dtype: Any = jax.numpy.bfloat16,
) -> TpuProgram:
    """A JAX function of local arrays, under ``shard_map`` over all devices of a topology."""
    chip = chips.find(target)
    described = compat.mesh_without_devices(mesh.sizes, mesh.axes, chip.device_kind)
    specs = tuple(spec for _, spec in arguments)
    mapped = jax.shard_map(function, mesh=described, in_specs=specs, out_specs=results, check_vma=False)
    shardings = [NamedSharding(described, spec) for spec in specs]
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=s) for (shape, _), s in zip(arguments, shardings, strict=True)]
    out = jax.tree.map(
        functools.partial(NamedSharding, described), results, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    with jaxprs.kernel_scope([], chip):
        jitted = jax.jit(mapped, in_shardings=tuple(shardings), out_shardings=out)
        artifact = bytes(jax.export.export(jitted, platforms=["tpu"])(*given).serialize())
    compiled = compiler.compile_artifact(artifact, chip, (), Source("", "", {}), mesh=mesh)
    return TpuProgram.of("by_hand", chip, compiled, artifact, (), mesh)


def training(
    loss: Callable[..., torch.Tensor], args: Sequence[Any], target: str, mesh: Any, fuse: str = "never"
) -> list[Captured]:
    """The forward and the backward of a loss, captured for all devices of a topology; ``fuse`` is the backend's."""
    chip = chips.find(target)
    return aot.capture_step(loss, args, {}, chip, {"fuse": fuse}, (), slice_of(target, chip, mesh))
