"""Every private name of torch, JAX and Helion that this package uses, each with why.

Nothing else imports a private module. A name that a version lacks fails here, with a coded error that
says which package and version was found and which were tested.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.experimental
import jax.extend
import torch
from torch.fx import node as node_module
from torch.utils import _pytree

from tpu_lowering import errors
from tpu_lowering.releases import TESTED, version


def private(package: str, module: str, name: str, why: str) -> Any:
    """Looks up one private name.

    Args:
        package: the distribution that owns it.
        module: the module it is defined in.
        name: the attribute.
        why: what it is needed for; shown when it is missing.

    Raises:
        TpuLoweringError: TL105, if the installed version does not have it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise missing(package, f"{module}.{name}", why, f"{type(error).__name__}: {error}") from error


def missing(package: str, name: str, why: str, got: str = "none") -> errors.TpuLoweringError:
    """The refusal of a package that lacks a private name."""
    found, tested = version(package), TESTED.get(package, "")
    return errors.refuse(
        "TL105",
        f"{package} {found or '(not installed)'}",
        f"expected {name} ({why}), got {got}",
        f"pip install {package}=={tested}" if tested else f"install a version of {package} that has it",
    )


# torch: everyday names that live in private modules -----------------------------------------------------
OpOverload = torch._ops.OpOverload  # the type of ``torch.ops.ns.op.overload``; there is no public name for it
OpOverloadPacket = torch._ops.OpOverloadPacket  # the type of ``torch.ops.ns.op``
tree_leaves = _pytree.tree_leaves  # nested values; ``torch.utils._pytree`` is what torch's own backends use
tree_map = _pytree.tree_map
map_arg: Any = node_module.map_arg  # replaces nodes inside nested arguments
set_grad_enabled = torch._C._set_grad_enabled  # what Dynamo writes for ``torch.no_grad`` inside a graph


# torch: capture ---------------------------------------------------------------------------------------
FakeTensor = private("torch", "torch._subclasses.fake_tensor", "FakeTensor", "values without storage in graphs")
OutputCode = private("torch", "torch._inductor.output_code", "OutputCode", "what AOTAutograd's cache keeps")
FakeTensorMode = private("torch", "torch._subclasses.fake_tensor", "FakeTensorMode", "types of nodes that passes add")
aot_autograd = private("torch", "torch._dynamo.backends.common", "aot_autograd", "forward and backward graphs")
aot_export_joint_simple = private(
    "torch", "torch._functorch.aot_autograd", "aot_export_joint_simple", "graph of a Helion kernel's host code"
)
min_cut_partition = private(
    "torch", "torch._functorch.partitioners", "min_cut_rematerialization_partition", "splits forward from backward"
)
disable_current_modes = private(
    "torch", "torch.utils._python_dispatch", "_disable_current_modes", "AOTAutograd compiles under modes of its own"
)
eager_flex_attention = private(
    "torch", "torch._higher_order_ops.flex_attention", "math_attention", "reference meaning of flex_attention"
)
auto_functionalized = private(
    "torch", "torch._higher_order_ops.auto_functionalize", "auto_functionalized", "call form of mutable operators"
)
auto_functionalized_v2 = private(
    "torch", "torch._higher_order_ops.auto_functionalize", "auto_functionalized_v2", "call form of mutable operators"
)
with_effects = private(
    "torch", "torch._higher_order_ops.effects", "with_effects", "call form of operators that raise or print"
)


def random_state_operators() -> tuple[Any, Any]:
    """(saving, repeating) higher-order operators that AOTAutograd writes for a random operator computed twice."""
    module, why = "torch._prims.rng_prims", "random values that a backward computes again"
    return private("torch", module, "run_and_save_rng_state", why), private("torch", module, "run_with_rng_state", why)


def core_aten_decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Torch's decompositions to the core ATen operator set, as a new dictionary.

    ``torch.export.default_decompositions`` is public, but gives an opaque table that also holds entries
    for composite operators, meant for ``run_decompositions`` alone.
    """
    return dict(private("torch", "torch._decomp", "core_aten_decompositions", "takes operators apart")())


def registered_decompositions(overloads: list[OpOverload]) -> dict[OpOverload, Callable[..., Any]]:
    """Torch's decompositions of given overloads, those outside the core set too."""
    return dict(private("torch", "torch._decomp", "get_decompositions", "takes operators apart")(overloads))


def keep_saved_tensors() -> None:
    """Tells AOTAutograd that the backward being compiled leaves what the forward saved as it is.

    It otherwise takes for granted that a backward overwrites some of it, and refuses ``retain_graph=True``.
    """
    context = private("torch", "torch._guards", "TracingContext", "backward that may run again").try_get()
    if context is not None and context.fw_metadata is not None:
        context.fw_metadata.bw_donated_idxs = []


def versions_advanced() -> tuple[int, ...]:
    """Positions of the arguments whose version counters AOTAutograd advances before each call of a graph.

    It does so by one for each argument that the graph writes to where autograd can see it. Asked while the forward or
    inference graph is compiled; empty outside of AOTAutograd.
    """
    context = private("torch", "torch._guards", "TracingContext", "versions of mutated arguments").try_get()
    metadata = context.fw_metadata if context is not None else None
    if metadata is None:
        return ()
    return tuple(len(metadata.tokens) + index for index in metadata.mutated_graph_handled_indices_seen_by_autograd)


@contextlib.contextmanager
def cold_dynamo() -> Generator[None]:
    """A scope in which nothing compiled before is reused, and after which what was compiled is forgotten."""
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


# JAX: names that its older releases lack -----------------------------------------------------------------
enable_x64: Any = getattr(jax if hasattr(jax, "enable_x64") else jax.experimental, "enable_x64")  # noqa: B009
TYPED_NUMBERS = hasattr(jax, "enable_x64")
"""Whether numbers in jaxprs keep their type in x64 mode: in JAX 0.7 those of an index map become int64."""


def empty(shape: Sequence[int], dtype: Any) -> Any:
    """A buffer with undefined contents: an allocation without a device operation; zeros, a fill, before JAX 0.8."""
    make = getattr(jax.lax, "empty", jax.numpy.zeros)
    return make(tuple(shape), dtype)


def chip_scope(device_kind: str) -> contextlib.AbstractContextManager[Any]:
    """A scope in which kernels that ask for facts of the chip get those of a TPU; JAX 0.7 has no such facts."""
    abstract_device = getattr(jax.sharding, "AbstractDevice", None)
    if abstract_device is None:
        return contextlib.nullcontext()
    device = abstract_device(device_kind=device_kind, num_cores=1, platform="tpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


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


# What Dynamo raises around a backend's error; its module is private.
BackendCompilerFailed: type[Exception] = private(
    "torch", "torch._dynamo.exc", "BackendCompilerFailed", "errors of capture"
)


def is_pipelined(block_mapping: Any) -> bool:
    """Whether an operand comes to a kernel block by block, in VMEM: no other memory was asked for.

    A block mapping has its memory space only inside its private aval; None there is Pallas's own choice.
    """
    space = getattr(block_mapping.block_aval, "memory_space", None)
    return space is None or str(space) in ("default", "vmem", "MemorySpace.VMEM")


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


def tpu_info(device_kind: str) -> Any:
    """JAX's table of what a TPU has: bandwidth, VMEM, lanes; for one device of a kind."""
    module, why = "jax._src.pallas.mosaic.tpu_info", "bandwidth and VMEM of a chip that is not there"
    version_ = private("jax", module, "chip_version_from_device_kind", why)(device_kind)
    return private("jax", module, "get_tpu_info_for_chip", why)(version_, 1)


def compiler_params(given: Any, **changes: Any) -> Any:
    """The compiler parameters of a traced ``pallas_call``, changed; before JAX 0.8 they are a table by backend."""
    if not hasattr(given, "items"):
        return dataclasses.replace(given, **changes)
    return {name: dataclasses.replace(params, **changes) for name, params in given.items()}


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


# Helion: kernels --------------------------------------------------------------------------------------
def has_helion() -> bool:
    """Whether Helion is installed. It is imported only when a graph holds one of its kernels."""
    return importlib.util.find_spec("helion") is not None


def helion_operators() -> tuple[Any, Any]:
    """(mutating, functional) higher-order operators that Dynamo writes for a Helion kernel call."""
    module = "helion._compiler._dynamo.higher_order_ops"
    why = "call form of Helion kernels"
    return (
        private("helion", module, "helion_kernel_wrapper_mutation", why),
        private("helion", module, "helion_kernel_wrapper_functional", why),
    )


def helion_kernel(index: int) -> Any:
    """The Helion kernel behind a ``kernel_idx`` in a graph: an index into a table of the process."""
    module = "helion._compiler._dynamo.higher_order_ops"
    return private("helion", module, "get_helion_kernel", "kernel behind a graph's kernel_idx")(index)


def helion_kernel_class() -> Any:
    """Helion's ``Kernel``: built again with settings of ours, so that the user's kernel stays as it is."""
    return private("helion", "helion.runtime.kernel", "Kernel", "a kernel with settings of our target")


def helion_capture(name: str) -> tuple[Any, Callable[[Sequence[Any]], Sequence[Any]]]:
    """The kernel behind an operator of ``helion_capture``, and the function that folds its numbers.

    Helion keeps no table of these operators; both are variables of the operator's fake implementation.
    """
    registry = private("torch", "torch._library.simple_registry", "singleton", "kernel of a helion_capture operator")
    known = inspect.getclosurevars(registry.find(name).fake_impl.kernel.func).nonlocals
    while "kernel" not in known and callable(known.get("func")):  # torch wraps what it registers
        known = inspect.getclosurevars(known["func"]).nonlocals
    if "kernel" not in known:
        raise missing("helion", "the closure of a helion_capture operator", "names 'kernel' and 'reconstruct'")
    return known["kernel"], known["reconstruct"]


@contextlib.contextmanager
def carried_functions(carry: Callable[[Any], Any]) -> Generator[None]:
    """A scope in which Dynamo takes functions as arguments of Helion kernels.

    Helion writes them into the graph as they are, which FX refuses; here they are written as what ``carry`` makes
    of them.
    """
    module, name = "helion._compiler._dynamo.variables", "_call_function_and_unflatten_output"
    write = private("helion", module, name, "functions as arguments of Helion kernels")

    def write_carried(translator: Any, operator: Any, args: Any, kwargs: dict[str, Any], *rest: Any) -> Any:
        constants = {key: carry(value) for key, value in kwargs["constant_args"].items()}
        return write(translator, operator, args, {**kwargs, "constant_args": constants}, *rest)

    setattr(importlib.import_module(module), name, write_carried)
    try:
        yield
    finally:
        setattr(importlib.import_module(module), name, write)


def register_graph_value(kind: type) -> None:
    """Lets FX keep values of a class in graphs as they are; the class has ``__eq__``, ``__hash__``, ``__fx_repr__``."""
    register = private("torch", "torch._library.opaque_object", "register_opaque_type", "functions in graphs")
    if not private("torch", "torch._library.opaque_object", "is_opaque_value_type", "functions in graphs")(kind):
        register(kind, typ="value")


def rebuild_helion_containers(arguments: dict[str, Any]) -> None:
    """Puts flattened tuple, list and dict arguments of a Helion call together again, in place."""
    module = "helion._compiler._dynamo.higher_order_ops"
    private("helion", module, "_rebuild_container_args", "container arguments of Helion calls")(arguments)


# torch_xla: imported only for tensors of its device -----------------------------------------------------
def xla_module(name: str) -> Any:
    """A public module of torch_xla.

    Raises:
        TpuLoweringError: TL105 if torch_xla cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing("torch_xla", name, "tensors on device xla", f"{type(error).__name__}: {error}") from error


def function_of_xla_kernel(kernel: Any) -> Callable[..., Any] | None:
    """The JAX function that ``torch_xla.experimental.custom_kernel.make_kernel_from_pallas`` was given; else None.

    It returns a ``functools.partial`` of a function of its own, with that function as the first argument.
    """
    made = (
        getattr(getattr(kernel, "func", None), "__qualname__", "") == "make_kernel_from_pallas.<locals>.wrapped_kernel"
    )
    return kernel.args[0] if made else None


# torch_tpu: imported only for tensors of its device ------------------------------------------------------
def tpu_callable(name: str, jitted: Any, donated: Sequence[int]) -> Any:
    """torch_tpu's ``JaxCallable`` of a jitted function; its ``exported`` exports the function for a TPU."""
    module, why = "torch_tpu._internal.pallas.pallas", "JAX functions on tensors of device tpu"
    kind = private("torch_tpu", module, "JaxCallable", why)
    return kind(name=name, jit_fn=jitted, trace_key=name, donate_argnums=list(donated))


def tpu_kernels() -> Any:
    """What ``JaxCallable`` registers and calls its functions with: ``register_custom_kernel``, ``call_custom_kernel``.

    Torch's Inductor calls them for its Pallas kernels. A ``JaxCallable`` exports and registers at its first call, and
    builds a key of all shapes at every call (0.5 ms for 300 tensors) to know whether it is the first.
    """
    return private("torch_tpu", "torch_tpu._internal.pallas", "tpu_torch_pallas", "programs on tensors of device tpu")


def tpu_name() -> str:
    """torch_tpu's name of this machine's TPU, "TPU v7"; "TPU" without one. The public function warns when called."""
    module, why = "torch_tpu._internal.utils.hardware", "kernels are lowered for one kind of TPU"
    return str(private("torch_tpu", module, "get_tpu_device_name", why)())


def exports_for_now() -> contextlib.AbstractContextManager[Any]:
    """A scope in which JAX exports for its own release, as torch_tpu exports: not for the last months' too."""
    name, why = "export_ignore_forward_compatibility", "JAX holds back newer lowerings from exports otherwise"
    return private("jax", "jax._src.config", name, why)(True)


# torch: operators -------------------------------------------------------------------------------------
def below_autograd() -> Any:
    """A context in which operators skip their autograd kernels, as a C++ autograd kernel does it."""
    return private("torch", "torch._C", "_AutoDispatchBelowAutograd", "calls an operator from its autograd kernel")()


def has_autograd_kernel(name: str) -> bool:
    """Whether an operator (``ns::op``) has an autograd kernel of its own, so that gradients are not dropped."""
    check = private("torch", "torch._C", "_dispatch_has_kernel_for_dispatch_key", "finds operators without backward")
    return bool(check(name, "Autograd") or check(name, "AutogradCPU") or check(name, "CompositeImplicitAutograd"))


def is_out_operator(overload: Any) -> bool:
    """Whether an operator is tagged as one that only writes to arguments it is given; torch 2.9 has no such tag."""
    tag = getattr(torch.Tag, "out", None)
    return tag is not None and tag in overload.tags


def overload_called(packet: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The overload that a call of ``torch.ops.ns.op`` (an overload packet) goes to."""
    resolve = private("torch", "torch._C", "_jit_resolve_packet", "overload behind a call without one")
    return getattr(packet, resolve(packet._qualified_op_name, *args, **kwargs) or "default")


# torch: dynamic shapes --------------------------------------------------------------------------------
def largest_size(size: torch.SymInt, symbol: Any) -> int | None:
    """The largest value that a size symbol may have in a graph, by its guards and ``mark_dynamic``; None if any."""
    known = size.node.shape_env.var_to_range.get(symbol)
    return int(known.upper) if known is not None and known.upper.is_Integer else None


def size_source(size: torch.SymInt, symbol: Any) -> str:
    """Where a size symbol comes from, in Dynamo's words: ``L['x'].size()[0]``; "" if torch does not say."""
    sources = size.node.shape_env.var_to_sources.get(symbol, [])
    name = getattr(sources[0], "name", "") if sources else ""
    return str(name() if callable(name) else name)


def recompile_reason() -> str:
    """Why Dynamo is compiling code that it has compiled before: the guard that failed; "" for a first time.

    Dynamo keeps it among the metrics of the compilation that is under way, which it has no public reader for.
    """
    context = private("torch", "torch._dynamo.utils", "get_metrics_context", "why Dynamo compiles again")()
    reason = str(getattr(context, "_metrics", {}).get("recompile_reason") or "")
    return "" if "BACKEND_MATCH" in reason else reason  # compiled by another backend, not again


def executable_bytes(compiled: Any) -> tuple[list[int], bytes] | None:
    """What another process needs to load a ``jax.stages.Compiled``: the arguments that the executable takes, and XLA's
    serialised form. JAX's own way to do so pickles; ``None`` if this executable has no such form."""
    unloaded = getattr(compiled._executable, "_unloaded_executable", None)
    if unloaded is None or unloaded.host_callbacks or unloaded.mut is not None or compiled._params.const_args:
        return None
    data = unloaded.backend.serialize_executable(unloaded.xla_executable)
    return sorted(unloaded.kept_var_idx), bytes(data)


def executable_from_bytes(data: bytes, kept: Sequence[int], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """A ``jax.stages.Compiled`` from ``executable_bytes``, for JAX's first CPU device.

    Args:
        data: XLA's serialised form.
        kept: positions of the inputs that the executable takes.
        inputs: a ``jax.ShapeDtypeStruct`` for each input.
        outputs: the same for each output.
    """
    why = "programs compiled by an earlier process"
    device = jax.devices("cpu")[0]
    devices = private("jaxlib", "jaxlib.xla_client", "DeviceList", why)((device,))
    unloaded = private("jax", "jax._src.interpreters.pxla", "UnloadedMeshExecutable", why)
    shaped = private("jax", "jax._src.core", "ShapedArray", why)
    sharding = jax.sharding.SingleDeviceSharding(device)
    taken = [shaped(inputs[at].shape, inputs[at].dtype) for at in kept]
    executable = unloaded(
        xla_executable=device.client.deserialize_executable(data, executable_devices=devices),
        device_list=devices,
        backend=device.client,
        input_avals=taken,
        input_shardings=[sharding] * len(taken),
        output_avals=[shaped(output.shape, output.dtype) for output in outputs],
        output_shardings=[sharding] * len(outputs),
        committed=True,
        name="tpu_lowering",
        unordered_effects=[],
        ordered_effects=[],
        keepalive=[],
        host_callbacks=[],
        kept_var_idx=set(kept),
        mut=None,
        xla_in_layouts=[None] * len(taken),
        dispatch_in_layouts=[None] * len(taken),
        xla_out_layouts=[None] * len(outputs),
        all_args_info=None,
        pgle_profiler=None,
    ).load()
    structure = jax.tree_util.tree_structure
    information = private("jax", "jax._src.stages", "ArgInfo", why)
    described = (tuple(information(shaped(x.shape, x.dtype), False) for x in inputs), {})
    return jax.stages.Compiled(executable, [], described, structure((0,) * len(outputs)), no_kwargs=True)


def serializable_compiler(kind: type, compiler: Callable[..., Any]) -> Callable[..., Any]:
    """A compiler for AOTAutograd whose results, of a kind, its cache may keep."""
    why = "programs in AOTAutograd's cache"
    return private("torch", "torch._functorch._aot_autograd.schemas", "SerializableAOTDispatchCompiler", why)(
        kind, compiler
    )


def bypass_autograd_cache(reason: str) -> Exception:
    """What a result raises that AOTAutograd's cache is not to keep."""
    module, why = "torch._functorch._aot_autograd.autograd_cache", "programs that no cache keeps"
    return private("torch", module, "BypassAOTAutogradCache", why)(reason)


@contextlib.contextmanager
def autograd_cache(tag: str) -> Generator[None]:
    """A scope in which AOTAutograd's cache is on, keeps results whole rather than in Inductor's cache, and compiles the
    backward at once. ``tag`` is part of every key."""
    functorch = private("torch", "torch._functorch", "config", "AOTAutograd's cache")
    settings = {"enable_autograd_cache": True, "bundled_autograd_cache": True, "force_non_lazy_backward_lowering": True}
    with functorch.patch(settings), torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        yield


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
