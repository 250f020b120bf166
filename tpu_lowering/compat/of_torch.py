"""Private names of torch: capture, decompositions, operators, dynamic shapes, AOTAutograd's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch.fx import node as node_module
from torch.utils import _pytree

from tpu_lowering.compat.lookup import private

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


def traced_line() -> str:
    """The stack trace of the node of Dynamo's graph that is being traced; "" outside of tracing."""
    current = private("torch", "torch.fx.traceback", "get_current_meta", "the user's line, while a graph is traced")
    return str(current().get("stack_trace") or "")


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


# What Dynamo raises around a backend's error; its module is private.
BackendCompilerFailed: type[Exception] = private(
    "torch", "torch._dynamo.exc", "BackendCompilerFailed", "errors of capture"
)


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
def example_sizes(sizes: Sequence[Any]) -> tuple[int, ...] | None:
    """Numbers in place of symbolic sizes: those that a graph was captured with. None if one depends on data."""
    numbers = tuple(size if type(size) is int else size.node.hint for size in sizes)
    return numbers if all(type(number) is int for number in numbers) else None


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
