"""``aot_compile``: a function compiled for a TPU on a machine that has none."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tpu_lowering import compat, errors
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.kernels import function_values, helion
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.observers import Observer
from tpu_lowering.options import Options, wrong_value
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.runtime.aot.capture import Captured, TpuRuntime
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.slices import Slice, slice_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def aot_compile(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "tpu7x",
    options: Mapping[str, Any] | None = None,
    donate: bool = True,
    mesh: DeviceMesh | None = None,
) -> TpuProgram:
    """Compiles the forward of a function or module for a TPU, with libtpu's compiler.

    The function is called once to capture it; its tensors' values are never used, and what it returns is
    undefined. It must be one graph (``fullgraph=True``).

    Args:
        fn: a function or module.
        args: its arguments: CPU tensors of the shapes and dtypes to compile for, and other values.
        kwargs: its keyword arguments.
        target: a chip (v4, v5e, v5p, v6e, tpu7x) or a topology ("v5e:2x4"). A program of several ranks,
            with collectives or a ``mesh``, is for all devices of a topology, any other for one device.
        options: backend options, as ``torch.compile`` takes them.
        donate: whether the buffers of mutated inputs are donated, so that they are updated in place.
        mesh: the mesh of all ranks, whose names the program's collectives have, and which JAX places on the torus;
            without one, axes are named by the groups of ranks. ``fake_mesh`` makes one of ranks that are not there.

    With ``options={"fuse": "tpu"}``, the default, the program is compiled without generated kernels too, and it is
    what is returned if the kernels move no fewer bytes, or if the compiler refuses them: see ``TpuProgram.fusion``.

    Returns:
        The compiled program. Its arguments are the captured tensors and, if it draws random numbers, a key; see
        ``TpuProgram.drawn_inputs``.

    Raises:
        TpuLoweringError: TL107 for an unknown target, TL112 for arguments that ``fn`` does not take, TL108 without
            libtpu, TL601 to TL605 for what the compiler refuses, TL721 to TL725 for a target that a mesh does not fit,
            and any code of compiling.
    """
    chosen = chips.find(target)
    check_call("aot_compile", fn, args, kwargs)
    if type(donate) is not bool:
        raise errors.wrong_argument("donate", f"True or False, got {donate!r}", "aot_compile(fn, args, donate=False)")
    devices = slice_of(target, chosen, mesh)
    compiler.require_libtpu()
    return compile_best(fn, args, kwargs or {}, chosen, options or {}, donate, (), devices)


def check_call(name: str, fn: Any, args: Any, kwargs: Any) -> None:
    """Checks the call that a function is captured by.

    Raises:
        TpuLoweringError: TL112.
    """
    if not callable(fn):
        raise errors.wrong_argument("fn", f"a function or module, got {type(fn).__name__}", f"{name}(model, (x,))")
    if not isinstance(args, (tuple, list)):
        got = "a tensor" if isinstance(args, torch.Tensor) else type(args).__name__
        raise errors.wrong_argument("args", f"a tuple of the arguments, got {got}", f"{name}(model, (x,))")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
        got = f"a dictionary of keyword arguments, got {type(kwargs).__name__}"
        raise errors.wrong_argument("kwargs", got, f"{name}(model, (x,), {{'mask': mask}})")
    called = fn.forward if isinstance(fn, torch.nn.Module) else fn
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # a function of C: it says itself what it does not take
        return
    try:
        signature.bind(*args, **(kwargs or {}))
    except TypeError as error:
        shown = getattr(called, "__qualname__", type(called).__name__)
        raise errors.wrong_argument(
            f"arguments of {shown}",
            f"arguments for {shown}{signature}, got {error}",
            "pass the function's own arguments",
        ) from error


def compile_best(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    chip: Chip,
    options: Mapping[str, Any],
    donate: bool,
    observers: Sequence[Observer],
    devices: Slice | None = None,
) -> TpuProgram:
    """The program with generated kernels or without, whichever moves fewer bytes; observers see the former."""
    if Options.create(options).fuse != "tpu":
        return compile_captured(capture(fn, args, kwargs, chip, options, observers, devices), chip, donate)

    def plain(remark: str) -> TpuProgram:
        captured = capture(fn, args, kwargs, chip, {**options, "fuse": "never"}, (), devices)
        return dataclasses.replace(compile_captured(captured, chip, donate), fusion=remark)

    try:
        captured = capture(fn, args, kwargs, chip, options, observers, devices)
        fused = compile_captured(captured, chip, donate)
    except (errors.TpuLoweringError, compat.BackendCompilerFailed) as error:
        return plain(f"without generated kernels: {refusal_of(error)}")
    kernels = [name for name, kernel in captured.source.kernels.items() if kernel.generated]
    if not kernels:
        return fused
    other = plain("")
    figures = f"{fused.hbm_bytes / 2**20:.1f} MiB with {', '.join(kernels)}, {other.hbm_bytes / 2**20:.1f} MiB without"
    return dataclasses.replace(fused if fused.hbm_bytes < other.hbm_bytes else other, fusion=figures)


def refusal_of(error: Exception) -> str:
    """The code and reason of an error, or its first line."""
    inner = getattr(error, "inner_exception", error)
    if isinstance(inner, errors.TpuLoweringError):
        return f"{inner.code}, {inner.refusal.reason}"
    return f"{type(inner).__name__}: {first_line(inner)}"


def capture(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    chip: Chip,
    options: Mapping[str, Any],
    observers: Sequence[Observer],
    devices: Slice | None = None,
) -> Captured:
    """Captures a function as one program for a chip, or for devices of a slice."""
    if (named := Options.create(options).mesh) != ():
        raise wrong_value("mesh", "no mesh, because a program is compiled ahead of time for one chip", dict(named))
    runtime = TpuRuntime(chip, devices)
    helion.check_calls()
    compat.trace_for_all_ranks()
    backend = functools.partial(helion_tpu, options=dict(options), runtime=runtime, observers=tuple(observers))
    with compat.cold_dynamo(), function_values.allowed(), torch.no_grad():
        torch.compile(fn, backend=backend, fullgraph=True, dynamic=False)(*args, **kwargs)
    return runtime.captured[-1]


def capture_step(
    fn: Callable[..., Any],
    args: Sequence[Any],
    chip: Chip,
    options: Mapping[str, Any],
    devices: Slice | None = None,
) -> list[Captured]:
    """Captures a function, and its backward if a result requires a gradient: one program or two."""
    runtime = TpuRuntime(chip, devices)
    helion.check_calls()
    compat.trace_for_all_ranks()
    backend = functools.partial(helion_tpu, options=dict(options), runtime=runtime)
    with compat.cold_dynamo(), function_values.allowed():
        results = torch.compile(fn, backend=backend, fullgraph=True, dynamic=False)(*args)
        wanted = [one for one in compat.tree_leaves(results) if isinstance(one, torch.Tensor) and one.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(one) for one in wanted])
    return runtime.captured


def compile_captured(captured: Captured, chip: Chip, donate: bool, simulate: bool | None = None) -> TpuProgram:
    """Compiles a captured program; ``simulate`` is as for ``compiler.compile_artifact``."""
    positions = captured.mutated_inputs if donate else ()
    compiled = compiler.compile_artifact(
        captured.artifact, chip, positions, captured.source, simulate, mesh=captured.mesh, named=captured.named
    )
    drawn = captured.program.drawn_inputs()
    return TpuProgram.of(captured.program.name, chip, compiled, captured.artifact, drawn, captured.named)
