"""Three ways to a program compiled for a TPU: as the author wrote it, through the passes, and from JAX directly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import torch
from torch import nn

from tpu_lowering import aot, compat, errors
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.kernels import function_values, jaxprs
from tpu_lowering.observers import Observer
from tpu_lowering.report import chip
from tpu_lowering.runtime.aot import compiler, refusals
from tpu_lowering.runtime.aot.capture import Captured, TpuRuntime
from tpu_lowering.runtime.aot.program import TpuProgram

NO_SOURCE = Source("", "", {})
"""The source of a program that was not generated."""

RESERVED_VMEM = 64 << 10  # bytes of VMEM that Helion's launches leave to the compiler; the direct ones do too


def before(fn: Callable[..., Any], args: Sequence[Any], target: str) -> list[TpuProgram]:
    """The programs of torch_tpu's split rule for a function as it was written, without our passes, in order."""
    chosen = chips.find(target)
    compiler.require_libtpu()
    normalised = chip.Normalised()
    aot.capture(fn, args, {}, chosen, {}, (normalised,))
    return chip.compile_as_written(normalised.modules[-1], chosen)


def after(fn: Callable[..., Any], args: Sequence[Any], target: str, *, donate: bool = True) -> list[TpuProgram]:
    """The one program that our backend makes of a function."""
    return [aot.aot_compile(fn, args, target=target, donate=donate)]


def fusion(fn: Callable[..., Any], args: Sequence[Any], target: str, fuse: str, simulate: bool) -> list[TpuProgram]:
    """The one program with generated kernels ("tpu") or without ("never")."""
    chosen = chips.find(target)
    compiler.require_libtpu()
    captured = aot.capture(fn, args, {}, chosen, {"fuse": fuse}, ())
    return [aot.compile_captured(captured, chosen, True, simulate)]


def captured_training(
    model: nn.Module,
    loss: Callable[[nn.Module], torch.Tensor],
    target: Chip,
    fuse: str,
    observers: Sequence[Observer] = (),
) -> list[Captured]:
    """The forward and the backward of a loss; ``fuse`` is the backend's option."""
    runtime = TpuRuntime(target)
    backend = functools.partial(helion_tpu, options={"fuse": fuse}, runtime=runtime, observers=observers)
    with compat.cold_dynamo(), function_values.allowed():
        torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)(model).backward()
    return runtime.captured


def direct(fn: Callable[..., Any], args: Sequence[Any], target: str) -> list[TpuProgram]:
    """A JAX function compiled by itself; ``args`` are PyTorch tensors or anything else with shape and dtype.

    Raises:
        TpuLoweringError: TL107, TL108, or TL601 to TL605, as for ``aot_compile``.
    """
    chosen = chips.find(target)
    compiler.require_libtpu()
    try:
        with jaxprs.kernel_scope([], chosen):
            exported = jax.export.export(jax.jit(fn), platforms=["tpu"])(*specs_of(args))
    except Exception as error:
        raise refusals.from_message(str(error), type(error).__name__, NO_SOURCE, chosen) from error
    artifact = bytes(exported.serialize())
    return [TpuProgram.of("direct", chosen, compiler.compile_artifact(artifact, chosen, (), NO_SOURCE), artifact)]


def specs_of(args: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of tensors, as JAX writes them."""
    return [jax.ShapeDtypeStruct(tuple(value.shape), str(value.dtype).removeprefix("torch.")) for value in args]


def kernel_vmem(target: str) -> int:
    """Bytes of VMEM that a kernel on a target may use: what Helion's launches ask for."""
    return chips.find(target).vmem_bytes - RESERVED_VMEM


def refused(error: Exception) -> dict[str, str]:
    """An error as results keep it: its code, or the name of its type, and its text."""
    code = error.code if isinstance(error, errors.TpuLoweringError) else type(error).__name__
    return {"code": code, "text": str(error)[:1000]}
