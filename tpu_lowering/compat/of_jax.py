"""Private names of JAX: kernels, executables, Pallas's interpreter, and names that older releases lack."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.experimental
import jax.extend

from tpu_lowering.compat.lookup import private

# JAX: names that its older releases lack -----------------------------------------------------------------
enable_x64: Any = getattr(jax if hasattr(jax, "enable_x64") else jax.experimental, "enable_x64")  # noqa: B009
TYPED_NUMBERS = hasattr(jax, "enable_x64")
"""Whether numbers in jaxprs keep their type in x64 mode: in JAX 0.7 those of an index map become int64."""


def empty(shape: Sequence[int], dtype: Any) -> Any:
    """A buffer with undefined contents: an allocation without a device operation; zeros, a fill, before JAX 0.8."""
    make = getattr(jax.lax, "empty", jax.numpy.zeros)
    return make(tuple(shape), dtype)


def chip_scope(device_kind: str) -> contextlib.AbstractContextManager[Any]:
    """A scope in which kernels that ask for facts of the chip get those of a TPU.

    JAX 0.7 has no such facts, and JAX 0.9 no name of the platform among them.
    """
    device = _described(device_kind)
    if not device:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), **device))


def traced_chip() -> str:
    """What JAX calls the TPU of ``chip_scope``; empty outside of it."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return "" if device is None else device.device_kind


def mesh_without_devices(sizes: Sequence[int], axes: Sequence[str], device_kind: str) -> Any:
    """A mesh that programs can be exported for; kernels in them that ask for facts of the chip get those of a TPU."""
    return jax.sharding.AbstractMesh(tuple(sizes), tuple(axes), **_described(device_kind))


def _described(device_kind: str) -> dict[str, Any]:
    """What an abstract mesh is told of its devices."""
    abstract_device = getattr(jax.sharding, "AbstractDevice", None)
    if abstract_device is None:
        return {}
    platform = {"platform": "tpu"} if "platform" in inspect.signature(abstract_device).parameters else {}
    return {"abstract_device": abstract_device(device_kind=device_kind, num_cores=1, **platform)}


# JAX: tracing ---------------------------------------------------------------------------------------------
def trace_context() -> Any:
    """All settings that change what JAX traces, those of scopes too, as JAX keys its own caches by them."""
    return private("jax", "jax._src.config", "trace_context", "kernels traced under the same settings")()


def tracing_turn(number: int) -> contextlib.AbstractContextManager[Any]:
    """A scope in which JAX does not take what it traced in scopes of other numbers: its caches know functions, and not
    what a function reads.

    JAX before 0.7.2 cannot be told so for a scope, and forgets everything.
    """
    context = _turns()
    if context is None:
        jax.clear_caches()
        return contextlib.nullcontext()
    return context(number)


@functools.cache
def _turns() -> Any:
    """Made when it is first needed: JAX's caches forget what they knew when it is."""
    return jax.make_user_context(0) if hasattr(jax, "make_user_context") else None


# JAX: kernels -----------------------------------------------------------------------------------------
def bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Runs one jaxpr equation on values, as JAX's own evaluator does; always a list of results.

    ``get_bind_params`` returned a pair until JAX 0.9; since then functions travel among the parameters.
    """
    params, functions = equation.primitive.get_bind_params(equation.params), ()
    if isinstance(params, tuple):
        functions, params = params
    with equation.ctx.manager:
        results = equation.primitive.bind(*functions, *values, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def blocked_sizes(block_shape: tuple[Any, ...]) -> tuple[int | None, ...]:
    """The sizes of a Pallas block shape; None for a squeezed dimension (size 1, dropped from the ref).

    ``BlockSpec`` turns ints into private dimension classes (``Blocked``, ``Squeezed``) when it is traced.

    Raises:
        NotImplementedError: a dimension is of another class, indexed by element.
    """
    sizes: list[int | None] = []
    for dim in block_shape:
        kind = type(dim).__name__
        if isinstance(dim, int):
            sizes.append(dim)
        elif kind == "Blocked":
            sizes.append(int(dim.block_size))
        elif kind == "Squeezed" or dim is None:
            sizes.append(None)
        else:
            raise NotImplementedError(kind)
    return tuple(sizes)


def jaxprs_in(params: dict[str, Any]) -> list[Any]:
    """The open jaxprs among the parameters of an equation."""
    return list(private("jax", "jax._src.core", "jaxprs_in_params", "branches, loops and calls in a kernel")(params))


def unnamed(jaxpr: Any, inputs: int) -> Any:
    """What JAX remembers of a jaxpr's source, without names, for the same jaxpr with another number of inputs."""
    known = jaxpr.debug_info
    if hasattr(known, "with_unknown_names"):
        return known.with_unknown_names()
    return known._replace(arg_names=("",) * inputs, result_paths=("",) * len(jaxpr.outvars))  # before JAX 0.8


def discharged(jaxpr: Any, grid_mapping: Any) -> tuple[Any, list[Any]]:
    """A kernel body as a function of values.

    Returns:
        A closed jaxpr from the values behind all references before a grid step to those after it, and the avals of
        the scratch buffers. Semaphores are integers.
    """
    module, why = "jax._src.pallas.hlo_interpreter", "kernel bodies without references"
    convert = private("jax", module, "kernel_to_hlo_jaxpr", why)
    backend = (None,) if "backend" in inspect.signature(convert).parameters else ()  # before JAX 0.8
    body, consts, scratch = convert(jaxpr, (), grid_mapping, *backend)
    return jax.extend.core.ClosedJaxpr(body, consts), list(scratch)


def grid_scope(ids: Sequence[Any], extents: Sequence[Any]) -> Any:
    """A context in which ``pl.program_id`` and ``pl.num_programs`` have given values, for index maps.

    Args:
        ids: one index a grid dimension that the body knows; see ``analyse.pallas.seen``.
        extents: one extent a grid dimension.
    """
    module, why = "jax._src.pallas.core", "kernel bodies outside a grid"
    axis, scope = private("jax", module, "GridAxis", why), private("jax", module, "grid_env", why)
    return scope(tuple(map(axis, ids, extents)))


def blocked_array(block_mapping: Any) -> Any:
    """Shape and dtype of the array that a block mapping cuts into blocks; by another name before JAX 0.8."""
    return getattr(block_mapping, "array_aval", None) or block_mapping.array_shape_dtype


def is_pipelined(block_mapping: Any) -> bool:
    """Whether an operand comes to a kernel block by block, in VMEM: no other memory was asked for.

    A block mapping has its memory space only inside its private aval; None there is Pallas's own choice.
    """
    space = getattr(block_mapping.block_aval, "memory_space", None)
    return space is None or str(space) in ("default", "vmem", "MemorySpace.VMEM")


def is_left_in_hbm(block_mapping: Any) -> bool:
    """Whether an operand stays where it is, and the kernel copies what it needs."""
    return str(getattr(block_mapping.block_aval, "memory_space", None)) in ("hbm", "any")


def start_indices(block_mapping: Any, ids: Sequence[Any], scalars: Sequence[Any]) -> tuple[Any, ...]:
    """Position of a block's first element in each dimension, from its index map."""
    return tuple(block_mapping.compute_start_indices_interpret(tuple(ids), *scalars))


def uninitialised(shape: tuple[int, ...], dtype: Any) -> Any:
    """What Pallas's interpreter takes for memory that nothing was stored to: NaN, or the smallest integer."""
    module, why = "jax._src.pallas.primitives", "undefined memory"
    return private("jax", module, "uninitialized_value", why)(shape, dtype)


def block_extents(block_shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The number of elements of a block in each dimension, squeezed dimensions included, whatever indexes them."""
    module, why = "jax._src.pallas.core", "sizes of blocks that are indexed by element"
    return tuple(private("jax", module, "_get_block_shape", why)(block_shape))


def compiler_params(given: Any, **changes: Any) -> Any:
    """The compiler parameters of a traced ``pallas_call``, changed; before JAX 0.8 they are a table by backend."""
    if not hasattr(given, "items"):
        return dataclasses.replace(given, **changes)
    return {name: dataclasses.replace(params, **changes) for name, params in given.items()}


def vmem_limit(given: Any) -> int | None:
    """The bytes of VMEM that compiler parameters allow; None where they say nothing."""
    tables = given.values() if hasattr(given, "values") else [given]
    return next((params.vmem_limit_bytes for params in tables if hasattr(params, "vmem_limit_bytes")), None)


def flash_attention_sums(operands: Sequence[Any], is_causal: bool, scale: float, blocks: Any) -> Any:
    """JAX's flash attention of (query, key, value, bias): (result, sums, tops), of which a logsumexp is made.

    The public function gives the result alone.
    """
    module, why = "jax.experimental.pallas.ops.tpu.flash_attention", "logsumexp of an attention"
    call = private("jax", module, "_flash_attention", why)
    return call(*operands, None, True, is_causal, scale, blocks, False)


def splash_attention_gradients(kernel: Any, operands: Sequence[Any], kept: Sequence[Any], gradient: Any) -> Any:
    """Gradients of (query, key, value) by JAX's splash attention, from a forward that ran elsewhere.

    The public way runs the forward again.

    Args:
        kernel: what ``make_splash_mha`` gives.
        operands: query, key, value.
        kept: the result and the logsumexp.
        gradient: that of the result.
    """
    module = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel"
    backward = private("jax", module, "_splash_attention_bwd", "gradients of an attention")
    known = ("save_residuals", "mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name", "mask_function")
    chosen = [kernel.kwargs[name] for name in (*known, "attn_logits_soft_cap", "interpret")]
    residuals = (*operands, None, None, *kept, kernel.dq_mask_info, kernel.dkv_mask_info)
    return backward(*chosen, residuals, gradient)[3:6]


def paged_attention(query: Any, key: Any, value: Any, *others: Any, pages_per_compute_block: int) -> Any:
    """JAX's paged attention, with keys and values of float32 as they are: the public function rounds them to bfloat16.

    Args:
        query: [sequences, heads, width], scaled.
        key, value: pages [heads, pages, page, width].
        others: lengths i32 [sequences] and table i32 [sequences, pages].
        pages_per_compute_block: divides the entries of a sequence in the table.
    """
    module, why = "jax.experimental.pallas.ops.tpu.paged_attention.paged_attention_kernel", "attention over pages"
    run = private("jax", module, "paged_attention", why)
    if key.dtype == jax.numpy.float32:
        run = _in_float32(run.__wrapped__, private("jax", module, "MultiPageAsyncCopyDescriptor", why))
    return run(query, key, value, *others, pages_per_compute_block=pages_per_compute_block)


def _in_float32(run: Any, copies: Any) -> Any:
    """The library's function with a class of its own for copied pages, which leaves them in float32."""

    class Copies(copies):
        def _maybe_dequantize(self, x: Any, x_scale: Any, dtype: Any = None) -> Any:
            return x

    names = ("paged_attention", "paged_flash_attention_kernel", "paged_flash_attention_kernel_inline_seq_dim")
    known = run.__globals__ | {copies.__name__: Copies}
    for name in names:
        given = inspect.unwrap(known[name])
        known[name] = types.FunctionType(given.__code__, known, name, given.__defaults__, given.__closure__)
        known[name].__kwdefaults__ = given.__kwdefaults__
    return known[names[0]]


@dataclasses.dataclass(frozen=True)
class Conflict:
    """Two accesses of one kernel to the same memory, at least one a write, that nothing puts in an order.

    Attributes:
        memory: the memory space: "hbm", "vmem", "smem".
        first, second: "read" or "write", the range, and the source line.
    """

    memory: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"in {self.memory.upper()}, {self.first} and {self.second}"


def interpreter_conflicts() -> list[Conflict]:
    """The races that JAX's TPU interpreter saw in the kernel that it ran last."""
    module, why = "jax._src.pallas.mosaic.interpret.", "races in kernels"
    state = private("jax", f"{module}interpret_pallas_call", "races", why)
    if state is None or not state.races_found:
        return []
    ordered = private("jax", f"{module}vector_clock", "ordered", why)
    overlap = private("jax", f"{module}race_detection_state", "_ranges_overlap", why)
    found: list[Conflict] = []
    for buffer, writes in state.writes.items():
        memory = str(buffer[0])
        others = [("write", *write) for write in writes] + [("read", *read) for read in state.reads[buffer]]
        for at, (_, _, clock, range_, frame) in enumerate(writes):
            for kind, _, _, other_clock, other_range, other_frame in others[at + 1 :]:
                if not ordered(clock, other_clock) and overlap(range_, other_range):
                    found.append(
                        Conflict(memory, _access("write", range_, frame), _access(kind, other_range, other_frame))
                    )
    return list(dict.fromkeys(found))


def _access(kind: str, range_: Any, frame: Any) -> str:
    dims = [f"{part.start}:{part.stop}" if isinstance(part, slice) else str(part) for part in range_]
    where = f" at {str(frame).rsplit('/', 1)[-1]}" if ":" in str(frame) else ""
    place = f"[{', '.join(dims)}]" if dims else "all of it"
    return f"a {kind} of {place}{where}"
