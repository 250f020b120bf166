"""Private names of torch: capture, decompositions, operators, dynamic shapes, AOTAutograd's cache."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from tpu_lowering.compat.lookup import private

# torch: looked up when they are first used, as ``compat.<name>`` ---------------------------------------------------
_MUTABLE = "call form of mutable operators"
_HIGHER_ORDER = "torch._higher_order_ops"
NAMES: dict[str, tuple[str, str, str]] = {
    "BackendCompilerFailed": ("torch._dynamo.exc", "BackendCompilerFailed", "errors of capture"),
    "DynamoError": ("torch._dynamo.exc", "TorchDynamoException", "errors of capture, of which a refusal is the cause"),
    "Unsupported": ("torch._dynamo.exc", "Unsupported", "a graph break where there may be none"),
    "FakeTensor": ("torch._subclasses.fake_tensor", "FakeTensor", "values without storage in graphs"),
    "FakeTensorMode": ("torch._subclasses.fake_tensor", "FakeTensorMode", "types of nodes that passes add"),
    "OpOverload": ("torch._ops", "OpOverload", "the type of torch.ops.ns.op.overload"),
    "HigherOrderOperator": ("torch._ops", "HigherOrderOperator", "the type of torch.ops.higher_order.name"),
    "OpOverloadPacket": ("torch._ops", "OpOverloadPacket", "the type of torch.ops.ns.op"),
    "OutputCode": ("torch._inductor.output_code", "OutputCode", "what AOTAutograd's cache keeps"),
    "LazyGraphModule": ("torch.fx._lazy_graph_module", "_LazyGraphModule", "a graph's module that nobody runs"),
    "aot_autograd": ("torch._dynamo.backends.common", "aot_autograd", "forward and backward graphs"),
    "aot_export_joint_simple": (
        "torch._functorch.aot_autograd", "aot_export_joint_simple", "graph of a Helion kernel's host code",
    ),
    "auto_functionalized": (f"{_HIGHER_ORDER}.auto_functionalize", "auto_functionalized", _MUTABLE),
    "auto_functionalized_v2": (f"{_HIGHER_ORDER}.auto_functionalize", "auto_functionalized_v2", _MUTABLE),
    "functionalize_rng_ops": (
        "torch._functorch.partitioners", "functionalize_rng_ops", "a backward that repeats the forward's draws",
    ),
    "disable_current_modes": (
        "torch.utils._python_dispatch", "_disable_current_modes", "AOTAutograd compiles under modes of its own",
    ),
    "eager_flex_attention": (f"{_HIGHER_ORDER}.flex_attention", "math_attention", "reference of flex_attention"),
    "lazy_graph_modules": (
        "torch.fx._lazy_graph_module", "_use_lazy_graph_module", "make_fx, of which the graph alone is wanted",
    ),
    "map_aggregate": ("torch.fx.node", "map_aggregate", "leaves of nested arguments"),
    "map_arg": ("torch.fx.node", "map_arg", "nodes inside nested arguments"),
    "min_cut_partition": (
        "torch._functorch.partitioners", "min_cut_rematerialization_partition", "splits forward from backward",
    ),
    "no_dispatch": ("torch._C", "_DisableTorchDispatch", "fake tensors made under another's mode"),
    "set_grad_enabled": ("torch._C", "_set_grad_enabled", "what Dynamo writes for torch.no_grad in a graph"),
    "tree_leaves": ("torch.utils._pytree", "tree_leaves", "nested values, as torch's own backends take them"),
    "tree_map": ("torch.utils._pytree", "tree_map", "nested values, as torch's own backends take them"),
    "with_effects": (f"{_HIGHER_ORDER}.effects", "with_effects", "call form of operators that raise or print"),
}  # fmt: skip
"""(module, name, why) by the name that it has here. A release that lacks one can do whatever does not need it."""


def random_state_operators() -> tuple[Any, Any]:
    """(saving, repeating) higher-order operators that AOTAutograd writes for a random operator computed twice."""
    module, why = "torch._prims.rng_prims", "random values that a backward computes again"
    return private("torch", module, "run_and_save_rng_state", why), private("torch", module, "run_with_rng_state", why)


def core_aten_decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions to the core ATen operator set, as a new dictionary.

    ``torch.export.default_decompositions`` is public, but gives an opaque table that also holds entries
    for composite operators, meant for ``run_decompositions`` alone.
    """
    return dict(private("torch", "torch._decomp", "core_aten_decompositions", "takes operators apart")())


def registered_decompositions(overloads: list[Any]) -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions of given overloads, those outside the core set too."""
    return dict(private("torch", "torch._decomp", "get_decompositions", "takes operators apart")(overloads))


@contextlib.contextmanager
def saving(*, operands_of_products: bool) -> Generator[None]:
    """A scope in which AOTAutograd's partitioner saves no views, but what they are views of; and pointwise work that
    only matrix products of the backward read, or what that is made of."""
    config = private("torch", "torch._functorch", "config", "what a backward is given")
    with config.patch(recompute_views=True, ban_recompute_materialized_backward=operands_of_products):
        yield


def traced_line() -> str:
    """The stack trace of the node of Dynamo's graph that is being traced; "" outside of tracing."""
    current = private("torch", "torch.fx.traceback", "get_current_meta", "the user's line, while a graph is traced")
    return str(current().get("stack_trace") or "")


def primitives() -> dict[Any, Callable[..., Any]]:
    """What eager runs for each of torch's primitives (``torch.ops.prims``), by the operator."""
    found: dict[Any, Callable[..., Any]] = {}
    for name in private("torch", "torch._prims", "__all__", "torch's primitives"):
        packet: Any = getattr(torch.ops.prims, name, None)
        function = getattr(packet, "impl_aten", None)
        if function is not None:
            found[packet.default] = function
    return found


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


def parameter_inputs(module: torch.fx.GraphModule) -> frozenset[int]:
    """Positions of a graph's inputs, as Dynamo wrote it, that are parameters or buffers of modules, or parts of them.

    Only Dynamo's private source of an input says so: parameters are inputs like all others.
    """
    found: set[int] = set()
    for at, node in enumerate(module.graph.find_nodes(op="placeholder")):
        source = getattr(node, "_dynamo_source", None)
        while source is not None and "ParamBufferSource" not in type(source).__name__:
            source = getattr(source, "base", None)
        if source is not None:
            found.add(at)
    return frozenset(found)


def input_behind(node: torch.fx.Node) -> int | None:
    """The position of the input of Dynamo's graph that a placeholder of AOTAutograd's joint graph is, or is part of."""
    description = node.meta.get("desc")
    while description is not None and not hasattr(description, "idx"):
        description = getattr(description, "base", None)
    return None if description is None else int(description.idx)


class ResultsOfForward(NamedTuple):
    """What AOTAutograd knows of the memory of a forward's or inference graph's results; see ``normalise.aliases``.

    Attributes:
        seen: how many results, from the first on, it uses itself; the others are saved for the backward.
        arguments: for the results that the user gets: the argument in whose memory each lies, None for its own memory.
        overwritten: for each argument that it writes to after the call, the result that it writes.
        placed: results in an argument's memory that it makes of the result's shape, strides and offset alone: at
            places that depend on sizes it does not replay the views.
    """

    seen: int
    arguments: dict[int, int | None]
    overwritten: dict[int, int]
    placed: frozenset[int]


def results_of_forward() -> ResultsOfForward | None:
    """What AOTAutograd knows of the results of the forward or inference graph that is being compiled.

    The graph alone does not tell whether a value that is written to an argument is given to the user as that argument,
    or as a tensor of its own. None outside of AOTAutograd.
    """
    context = private("torch", "torch._guards", "TracingContext", "memory of results").try_get()
    metadata = context.fw_metadata if context is not None else None
    if metadata is None:
        return None
    tokens, runtime = len(metadata.tokens), metadata.mutated_inp_runtime_indices
    arguments: dict[int, int | None] = {}
    for at, info in enumerate(metadata.output_info, tokens + len(runtime)):
        if info.output_type.name in ("alias_of_input", "is_input"):
            arguments[at] = tokens + info.base_idx
        elif info.output_type.name == "non_alias":
            arguments[at] = None
    written = {tokens + argument: tokens + at for at, argument in enumerate(runtime)}
    overwritten = {a: at for a, at in written.items() if metadata.input_info[a - tokens].mutates_data}
    sequences = [getattr(info, "view_meta_sequence", None) for info in metadata.output_info]
    symbolic = [sequence and any(view.has_symbolic_inputs for view in sequence.sequence) for sequence in sequences]
    placed = frozenset(
        at for at, found in enumerate(symbolic, tokens + len(runtime)) if found and arguments.get(at) is not None
    )
    return ResultsOfForward(tokens + metadata.num_forward, arguments, overwritten, placed)


@contextlib.contextmanager
def cold_dynamo() -> Generator[None]:
    """A scope in which nothing compiled before is reused, and after which what was compiled is forgotten."""
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


_registering = threading.Lock()


def register_backend_once(function: Callable[..., Any], name: str) -> None:
    """Registers a backend for ``torch.compile``; threads at once, too.

    Torch loads an entry point and registers what it gives, which fails for all but the first of several threads. It
    registers nothing if the entry point gives None, and takes what is registered under the name.
    """
    registered = private("torch", "torch._dynamo.backends.registry", "_COMPILER_FNS", "a backend registered once")
    with _registering:
        if name not in registered:
            torch._dynamo.register_backend(function, name=name)


# torch: operators -------------------------------------------------------------------------------------
def handling(handle: Callable[..., Any]) -> Any:
    """A context in which calls of operators go to ``handle(context, overload, args, kwargs)``."""
    mode = private("torch", "torch.utils._python_dispatch", "TorchDispatchMode", "operators that a function calls")

    class Handling(mode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return handle(self, func, args, kwargs or {})

    return Handling()


def below_autograd() -> Any:
    """A context in which operators skip their autograd kernels, as a C++ autograd kernel does it."""
    return private("torch", "torch._C", "_AutoDispatchBelowAutograd", "calls an operator from its autograd kernel")()


def custom_operator(name: str) -> tuple[Callable[..., Any] | None, ...] | None:
    """What ``torch.library.custom_op`` and its methods made an operator (``ns::op``) of: gradient, context, types.

    None if it was not made so.
    """
    known = private("torch", "torch._library.custom_ops", "OPDEFS", "gradients of the user's operators").get(name)
    return None if known is None else (known._backward_fn, known._setup_context_fn, known._abstract_fn)


def refuse_unknown_calls(module: torch.fx.GraphModule) -> None:
    """Raises LookupError if a graph of Dynamo's calls what AOTAutograd's cache knows by its name alone.

    The cache itself asks this of a graph's own calls, and not of those in its sub-graphs.
    """
    cache = "torch._functorch._aot_autograd.autograd_cache"
    check = private("torch", cache, "check_node_safe", "calls that a cache knows")
    bypass = private("torch", cache, "BypassAOTAutogradCache", "calls that a cache knows")
    try:
        for node in module.graph.nodes:
            check(node)
    except (bypass, AssertionError) as error:
        raise LookupError(str(error)) from error


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
def example_sizes(sizes: Sequence[Any]) -> tuple[int, ...] | None:
    """Numbers in place of symbolic sizes: those that a graph was captured with. None if one depends on data."""
    numbers = tuple(size if type(size) is int else size.node.hint for size in sizes)
    return numbers if all(type(number) is int for number in numbers) else None


def largest_size(size: torch.SymInt, symbol: Any) -> int | None:
    """The largest value that a size symbol may have in a graph, by its guards and ``mark_dynamic``; None if any."""
    known = size.node.shape_env.var_to_range.get(symbol)
    return int(known.upper) if known is not None and known.upper.is_Integer else None


def python_mod(value: Any, size: int) -> Any:
    """``value % size`` as an expression, with Python's meaning for negative numbers."""
    why = "positions counted from the start"
    return private("torch", "torch.utils._sympy.functions", "PythonMod", why)(value, size)


def evaluator(expressions: Sequence[Any], symbols: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
    """Expressions of sizes and numbers as one Python function of what their symbols stand for."""
    printer = private("torch", "torch.utils._sympy.printers", "PythonPrinter", "numbers that a program is told")()
    names = ", ".join(map(str, symbols))
    items = "".join(f"{printer.doprint(expression)}, " for expression in expressions)
    return eval(f"lambda {names}: ({items})", {"math": math, "torch": torch})


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
    settings = {"enable_autograd_cache": True, "bundled_autograd_cache": True}
    scopes = functorch.patch(settings), torch.compiler.config.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    with scopes[0], scopes[1], backward_at_once():
        yield


def backward_at_once() -> AbstractContextManager[None]:
    """A scope in which AOTAutograd compiles a backward beside its forward, and not when a gradient is asked for.

    To ask for one would run the user's hooks, and leave gradients in parameters.
    """
    functorch = private("torch", "torch._functorch", "config", "a backward without a call")
    return functorch.patch({"force_non_lazy_backward_lowering": True})


# torch: where a graph's inputs and results come from ----------------------------------------------------
def source_of(placeholder: torch.fx.Node) -> str:
    """Where Dynamo found an input of its graph, in its words: ``L['self']._modules['fc']._parameters['weight']``; ""
    where it does not say. Nothing public tells which parameter an input is."""
    name = getattr(getattr(placeholder, "_dynamo_source", None), "name", "")
    return str(name() if callable(name) else name)


def traced_locals() -> dict[str, Any]:
    """The local variables of the function that Dynamo compiles, as it was called; empty outside of Dynamo.

    A graph's inputs are what it uses. That it does not use an argument, or a parameter, only the function tells.
    """
    module, why = "torch._dynamo.symbolic_convert", "names of what a graph does not use"
    try:
        return dict(private("torch", module, "InstructionTranslator", why).current_tx().output.local_scope)
    except AttributeError:
        return {}


def input_described(described: Any) -> int | None:
    """The number of the input of Dynamo's graph that AOTAutograd's description of an input says; None for another."""
    module, why = "torch._functorch._aot_autograd.descriptors", "parameters of a graph"
    return described.idx if isinstance(described, private("torch", module, "PlainAOTInput", why)) else None


def gradient_described(described: Any) -> int | None:
    """The number of the input that a result is the gradient of, by AOTAutograd's description of a result."""
    module, why = "torch._functorch._aot_autograd.descriptors", "gradients of parameters"
    is_gradient = isinstance(described, private("torch", module, "GradAOTOutput", why))
    return input_described(described.grad_of) if is_gradient else None


def result_of_tangent(described: Any) -> Any:
    """AOTAutograd's description of the forward's result that an input of a backward is the gradient of; or None."""
    module, why = "torch._functorch._aot_autograd.descriptors", "gradients that a backward is given"
    return described.output if isinstance(described, private("torch", module, "TangentAOTInput", why)) else None
