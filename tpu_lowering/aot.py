"""``aot_compile``: a function compiled for a TPU on a machine that has none."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import fx

from tpu_lowering import compat, errors, offenders
from tpu_lowering.backend import helion_tpu
from tpu_lowering.capture import refusals
from tpu_lowering.capture.names import Names
from tpu_lowering.capture.remarks import Remarks
from tpu_lowering.fuse.passes import FUSION, KERNELS, ROW_KERNELS
from tpu_lowering.fuse.rows.row_kernel import RowKernel
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import Kernel
from tpu_lowering.kernels import function_values, helion
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.observers import Observer
from tpu_lowering.options import Options, wrong_value
from tpu_lowering.pipeline import Pipeline
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.runtime.aot.capture import Captured, TpuRuntime
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.slices import Slice, slice_of
from tpu_lowering.runtime.aot.step import TpuStep, lay_out_images

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@overload
def aot_compile(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "tpu7x",
    options: Mapping[str, Any] | None = None,
    donate: bool = True,
    mesh: DeviceMesh | None = None,
    backward: Literal[False] = False,
) -> TpuProgram: ...
@overload
def aot_compile(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "tpu7x",
    options: Mapping[str, Any] | None = None,
    donate: bool = True,
    mesh: DeviceMesh | None = None,
    backward: Literal[True],
) -> TpuStep: ...
def aot_compile(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "tpu7x",
    options: Mapping[str, Any] | None = None,
    donate: bool = True,
    mesh: DeviceMesh | None = None,
    backward: bool = False,
) -> TpuProgram | TpuStep:
    """Compiles a function or module for a TPU, with libtpu's compiler: its forward, or the forward and the backward.

    The function is called once or twice to capture it; its tensors' values are never used, and what it returns is
    undefined. It must be one graph (``fullgraph=True``). No gradient is left in a parameter.

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
        backward: whether to compile the forward as training runs it, and the backward: gradients of all results that
            require one, for all arguments, parameters and captured tensors that do.

    With ``options={"fuse": "tpu"}``, the default, the program is compiled without its generated kernels of rows too (of
    attention, if it has no others), and it is what is returned if the kernels move no fewer bytes, or if the compiler
    refuses them: see ``TpuProgram.fusion``.
    With ``backward`` the bytes of both programs together count.

    Returns:
        The compiled program. Its arguments are the captured tensors and, if it draws random numbers, a key; see
        ``TpuProgram.drawn_inputs``. With ``backward`` two of them, and what is saved in between.

    Raises:
        TpuLoweringError: TL107 for an unknown target, TL112 for arguments that ``fn`` does not take, TL108 without
            libtpu, TL115 with ``backward`` for a function no result of which requires a gradient, TL601 to TL605 for
            what the compiler refuses, TL721 to TL725 for a target that a mesh does not fit, and any code of compiling.
    """
    chosen = chips.find(target)
    check_call("aot_compile", fn, args, kwargs)
    for name, value in (("donate", donate), ("backward", backward)):
        if type(value) is not bool:
            call = f"aot_compile(fn, args, {name}={name == 'backward'})"
            raise errors.wrong_argument(name, f"True or False, got {offenders.shown(value)}", call)
    devices = slice_of(target, chosen, mesh)
    compiler.require_libtpu()

    def capturing(options: Mapping[str, Any]) -> list[Captured]:
        given = (fn, args, kwargs or {}, chosen, options, (), devices)
        return _both(fn, capture_step(*given)) if backward else [capture(*given)]

    made = compile_best(capturing, chosen, options or {}, donate)
    return TpuStep.of(made.captured, made.programs) if backward else made.programs[0]


def check_call(name: str, fn: Any, args: Any, kwargs: Any) -> None:
    """Checks the call that a function is captured by.

    Raises:
        TpuLoweringError: TL112.
    """
    if not callable(fn):
        example = "explain(model, x)" if name == "explain" else f"{name}(model, (x,))"
        raise errors.wrong_argument("fn", f"a function or module, got {type(fn).__name__}", example)
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
        shown = offenders.name_of(called)
        raise errors.wrong_argument(
            f"arguments of {shown}",
            f"arguments for {shown}{signature}, got {str(error).removeprefix('got ')}",
            "pass the function's own arguments",
        ) from error


def _both(fn: Callable[..., Any], captured: list[Captured]) -> list[Captured]:
    """A forward and its backward.

    Raises:
        TpuLoweringError: TL115 for a forward alone.
    """
    if len(captured) == 1:
        raise errors.refuse(
            "TL115",
            offenders.name_of(fn),
            "expected a result computed of an argument, parameter or other tensor that requires a gradient, got none",
            "call requires_grad_() on what is trained, or compile with backward=False",
        )
    return captured


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A function compiled: the programs that were captured of it, and what the compiler made of each."""

    captured: tuple[Captured, ...]
    programs: tuple[TpuProgram, ...]

    @property
    def hbm_bytes(self) -> int:
        return sum(program.hbm_bytes for program in self.programs)

    def with_remark(self, fusion: str, captured: Sequence[Captured] = ()) -> Made:
        """The same, with what generated kernels came to; ``captured`` is the form with them, if this is the other."""
        told = [{"fusion": fusion, **remarks_of(one)} for one in captured or self.captured]
        pairs = zip(self.programs, told, strict=True)
        return Made(self.captured, tuple(dataclasses.replace(program, **given) for program, given in pairs))


def remarks_of(captured: Captured) -> dict[str, Any]:
    """What is said of a captured program's fusion, as fields of a ``TpuProgram``."""
    return {name: getattr(captured, name) for name in REMARKS}


REMARKS = ("fused", "unfused", "launched")
"""Kinds of actions that a program has remarks on, and its fields for them."""


Capturing = Callable[[Mapping[str, Any]], Sequence[Captured]]
"""Captures a function with given options of the backend."""


def compile_best(
    capturing: Capturing, chip: Chip, options: Mapping[str, Any], donate: bool, simulate: bool | None = None
) -> Made:
    """A function with generated kernels of rows or without them, whichever moves fewer bytes, all its programs
    together. Where no kernel is of rows, the other form is without the kernels of attention and around the user's.

    The two forms are compiled side by side, and rewritten alike. Where fusing fails, or both forms are refused and both
    have kernels, one is compiled that is as it was written. ``simulate`` is as for ``compiler.compile_artifact``.
    """
    chosen = Options.create(options)
    if chosen.fuse != "tpu":
        return compile_all(capturing(options), chip, donate, simulate)

    def without(passes: Container[str]) -> Sequence[Captured]:
        return capturing({**options, "passes": str(Pipeline.of(chosen, chip).without(passes))})

    def plain(error: Exception, captured: Sequence[Captured] = ()) -> Made:
        return compile_all(without(FUSION), chip, donate, simulate).with_remark(left_out(error), captured)

    try:
        captured = capturing(options)
    except (errors.TpuLoweringError, compat.BackendCompilerFailed) as error:
        return plain(error)
    kernels = generated_kernels(captured)
    if not kernels:
        return compile_all(captured, chip, donate, simulate)
    rows = [name for name, kernel in kernels.items() if isinstance(kernel, RowKernel)]
    names = ", ".join(rows or kernels)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(compile_all, captured, chip, donate, simulate)
        apart = without(ROW_KERNELS if rows else KERNELS)
        other = pool.submit(compile_all, apart, chip, donate, simulate)
    refused, other_refused = _refusal(running), _refusal(other)
    if refused is not None and other_refused is not None and generated_kernels(apart):
        return plain(other_refused, captured)
    if refused is not None:
        return other.result().with_remark(left_out(refused, names), captured)
    fused = running.result()
    if other_refused is not None:
        return fused.with_remark(f"{_mib(fused)} with {names}; refused without: {refusal_of(other_refused)}")
    best = fused if fused.hbm_bytes < other.result().hbm_bytes else other.result()
    taken = "with" if best is fused else "without"
    both = f"{_mib(fused)} with {names}, {_mib(other.result())} without"
    return best.with_remark(f"{both}; the form {taken} is taken", captured)


def _refusal(made: concurrent.futures.Future[Made]) -> errors.TpuLoweringError | None:
    """Why a form was refused; any other error is raised."""
    error = made.exception()
    if error is None or isinstance(error, errors.TpuLoweringError):
        return error
    raise error


def generated_kernels(captured: Sequence[Captured]) -> dict[str, Kernel]:
    """Kernels that passes made, of all programs, by their names."""
    return {name: kernel for one in captured for name, kernel in one.source.kernels.items() if kernel.generated}


def compile_all(captured: Sequence[Captured], chip: Chip, donate: bool, simulate: bool | None = None) -> Made:
    """Each program of a form compiled, one after the other; ``simulate`` is as for ``compiler.compile_artifact``."""
    return Made(tuple(captured), tuple(compile_captured(one, chip, donate, simulate) for one in captured))


def _mib(made: Made) -> str:
    return f"{made.hbm_bytes / 2**20:.1f} MiB"


def left_out(error: Exception, kernels: str = "generated kernels") -> str:
    """The remark on what was compiled without kernels, because of an error."""
    return f"without {kernels}: {refusal_of(error)}"


def refusal_of(error: Exception) -> str:
    """The code and reason of an error, or its first line."""
    if refusal := refusals.refusal_in(error):
        return f"{refusal.code}, {refusal.refusal.reason}"
    inner = getattr(error, "inner_exception", error)
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
    """Captures the forward of a function as one program for a chip, or for devices of a slice."""
    with torch.no_grad():
        return _captured(fn, args, kwargs, chip, options, observers, devices)[-1]


def capture_step(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    chip: Chip,
    options: Mapping[str, Any],
    observers: Sequence[Observer] = (),
    devices: Slice | None = None,
) -> list[Captured]:
    """Captures a function, and its backward if a result requires a gradient: one program or two, the forward first."""
    with torch.enable_grad(), compat.backward_at_once():
        return lay_out_images(_captured(fn, args, kwargs, chip, options, observers, devices))


def _captured(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    chip: Chip,
    options: Mapping[str, Any],
    observers: Sequence[Observer],
    devices: Slice | None,
) -> list[Captured]:
    if (named := Options.create(options).mesh) != ():
        raise wrong_value("mesh", "no mesh, because a program is compiled ahead of time for one chip", dict(named))
    runtime, remarks = TpuRuntime(chip, devices), Remarks()
    helion.check_calls()
    compat.trace_for_all_ranks()

    def backend(module: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        runtime.inputs = tuple(names[0] for names in Names.of(module).inputs)
        return helion_tpu(module, examples, options=dict(options), runtime=runtime, observers=(remarks, *observers))

    with compat.cold_dynamo(), function_values.allowed(), refusals.unwrapped():
        torch.compile(fn, backend=backend, fullgraph=True, dynamic=False)(*args, **kwargs)
    return [
        dataclasses.replace(one, **{kind: remarks.of_kind(kind, one.program.name) for kind in REMARKS})
        for one in runtime.captured
    ]


def compile_captured(captured: Captured, chip: Chip, donate: bool, simulate: bool | None = None) -> TpuProgram:
    """Compiles a captured program; ``simulate`` is as for ``compiler.compile_artifact``."""
    positions = captured.mutated_inputs if donate else ()
    compiled = compiler.compile_artifact(
        captured.artifact,
        chip,
        positions,
        captured.source,
        simulate,
        mesh=captured.mesh,
        named=captured.named,
        orders=captured.orders,
    )
    drawn = captured.program.drawn_inputs()
    program = TpuProgram.of(captured.program.name, chip, compiled, captured.artifact, drawn, captured.named)
    return dataclasses.replace(program, **remarks_of(captured))
