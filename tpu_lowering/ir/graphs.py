"""Reading and editing FX graphs: the few moves that every pass makes."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import arguments, fakes
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.kernels import Kernel, kernel_call
from tpu_lowering.ir.regions import Region, regions_of
from tpu_lowering.ir.types import TensorType

SHARED_META = ("stack_trace", "source_fn_stack", "nn_module_stack")


def is_call(node: Any, target: Any) -> bool:
    """Whether a value is a node that calls ``target``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def kernel_calls(graph: fx.Graph) -> list[fx.Node]:
    """The kernel-call nodes of a graph, in order."""
    return [node for node in graph.nodes if is_call(node, kernel_call)]


def kernel_of(node: fx.Node) -> Kernel:
    kernel = node.args[0]
    assert isinstance(kernel, Kernel)
    return kernel


def operands_of(node: fx.Node) -> tuple[fx.Node | None, ...]:
    operands = node.args[1]
    assert isinstance(operands, (tuple, list))
    return tuple(operands)  # type: ignore[arg-type]


def set_operands(node: fx.Node, operands: Sequence[fx.Node | None]) -> None:
    """Gives a kernel call other operands; None makes one fresh."""
    call_args: Any = (node.args[0], tuple(operands))
    node.args = call_args


def set_kernel(node: fx.Node, kernel: Kernel) -> None:
    """Gives a kernel call another kernel with the same operands and results."""
    call_args: Any = (kernel, node.args[1])
    node.args = call_args


def chip(graph: fx.Graph) -> Chip:
    """What a graph is for; ``normalise.specialise`` sets it."""
    return graph.owning_module.meta.get("chip", CPU) if graph.owning_module is not None else CPU


def type_of(node: fx.Node) -> TensorType:
    """Element type and shape of a node's tensor."""
    return TensorType.of(node.meta["val"])


@contextlib.contextmanager
def inserting_for(node: fx.Node, after: bool = False, before: fx.Node | None = None) -> Generator[fx.Graph]:
    """Inserts before (or after) a node, or before another one; new nodes carry its source line."""
    graph, at = node.graph, before or node
    shared = {key: node.meta[key] for key in SHARED_META if key in node.meta}
    with recorded(graph) as new, graph.inserting_after(at) if after else graph.inserting_before(at):
        yield graph
    for inserted in new:
        for key, value in shared.items():
            inserted.meta.setdefault(key, value)


@contextlib.contextmanager
def recorded(graph: fx.Graph) -> Generator[list[fx.Node]]:
    """The nodes that are made in a scope, in order; to look for them in a long graph takes as long as the graph is."""
    new: list[fx.Node] = []
    outer: Callable[..., fx.Node] = graph.create_node

    def create(*args: Any, **kwargs: Any) -> fx.Node:
        new.append(outer(*args, **kwargs))
        return new[-1]

    is_nested = "create_node" in vars(graph)
    graph.create_node = create
    try:
        yield new
    finally:
        if is_nested:
            graph.create_node = outer
        else:
            del graph.create_node


def call(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Appends a call at the insertion point and infers its value by running it on fake tensors.

    Targets are pure: an ATen overload, ``read_box``, ``write_box``, ``kernel_call`` or ``getitem``.
    """
    value = fakes.infer(values_of(graph), target, args, kwargs)
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = value
    return node


def called_again(graph: fx.Graph, node: fx.Node, now: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Appends the call of a node, of what some of its arguments are now."""
    args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), lambda used: now.get(used, used))
    return call(graph, node.target, *args, **kwargs)  # type: ignore[arg-type]


def reshaped(graph: fx.Graph, node: fx.Node, shape: Sequence[int]) -> fx.Node:
    """A node with other sizes, the elements in the same order; itself if it has them."""
    same = tuple(node.meta["val"].shape) == tuple(shape)
    return node if same else call(graph, compat.aten.reshape.default, node, list(shape))


def permuted(graph: fx.Graph, node: fx.Node, order: Sequence[int]) -> fx.Node:
    """A permuted node; the node itself where its dimensions are in order."""
    return node if list(order) == sorted(order) else call(graph, compat.aten.permute.default, node, list(order))


def converted(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A node with elements of another type; itself if they are of it."""
    same = node.meta["val"].dtype == dtype
    return node if same else call(graph, compat.aten._to_copy.default, node, dtype=dtype)


VALUES = "values"
"""Key of a module's metadata: the ``fakes.Values`` of its graph; ``normalise.specialise`` sets it."""


def values_of(graph: fx.Graph) -> fakes.Values:
    """Where the values of a graph's nodes are from."""
    known = None if graph.owning_module is None else graph.owning_module.meta.get(VALUES)
    return fakes.Values(fake_mode(graph)) if known is None else known


def fake_mode(graph: fx.Graph) -> Any:
    """The one fake mode that all values of a graph belong to; a new one for a graph without tensors."""
    for node in graph.nodes:
        value: Any = node.meta.get("val")
        for leaf in (value,) if isinstance(value, compat.FakeTensor) else compat.tree_leaves(value):
            if isinstance(leaf, compat.FakeTensor):
                return leaf.fake_mode
    return compat.FakeTensorMode()


def lay_out_like(node: fx.Node, base: fx.Node) -> None:
    """Records that a node is a new value of the memory of ``base``, in whose strides later views are given."""
    value = base.meta["val"]
    node.meta["val"] = fakes.Layout.of(value)._replace(device=fakes.CPU).fake(value.fake_mode)


def replace(old: fx.Node, new: fx.Node) -> None:
    """Sends every use of ``old`` to ``new`` and erases it."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A module with a copy of the graph and its regions; kernels and recorded values are shared, not copied."""
    copied = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        nodes[node] = copied.node_copy(node, lambda used: nodes[used])
        nodes[node].meta = dict(node.meta)
        if regions_of(node):
            nodes[node].args = compat.tree_map(_copy_region, nodes[node].args, is_leaf=_is_node)
    result = module_of(module, copied)
    result.meta.update(module.meta)
    return result


def module_of(attributes: fx.GraphModule | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """A module with a graph, and those attributes of another that the graph names. Torch writes no Python code of it
    until somebody asks for that; nobody does."""
    return compat.LazyGraphModule(attributes, graph)


def _copy_region(value: Any) -> Any:
    return Region(value.name, copy_module(value.module)) if isinstance(value, Region) else value


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def eliminate_dead_code(graph: fx.Graph, spare: Callable[[fx.Node], bool] = lambda node: False) -> list[fx.Node]:
    """Erases calls whose results nobody uses, but those to spare, and those that have effects.

    Returns:
        The erased nodes.
    """
    erased: list[fx.Node] = []
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users and not has_effect(node) and not spare(node):
            erased.append(node)
            graph.erase_node(node)
    return erased


def has_effect(node: fx.Node) -> bool:
    """Whether a call does something beside giving results: it writes to its arguments by its schema, or asserts.

    To draw random numbers is no effect: a draw that nobody uses is not made. Torch counts it as one.
    """
    draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return node.is_impure() and not (draws and not compat.schema(node.target).is_mutable)


def sort_by_use(graph: fx.Graph) -> None:
    """Puts every node after what it uses; nodes that stand so already keep their order."""
    position = {node: at for at, node in enumerate(graph.nodes)}
    missing = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready = [at for node, at in position.items() if not missing[node]]
    nodes, output = list(graph.nodes), graph.output_node()
    heapq.heapify(ready)
    while ready:
        node = nodes[heapq.heappop(ready)]
        if node is not output:
            output.prepend(node)
        for user in node.users:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, position[user])


_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
"""Where torch's own files are."""
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+)_at_\d+$")
"""What Dynamo calls the rest of a function, behind a place where it left it."""
_OWNER = re.compile(r"^L\['\w+'\]\.?")
"""How Dynamo writes the local name of a module: of ``self``, or of what was compiled."""


def source_line(node: fx.Node) -> str:
    """The user's source line of a node, ``file.py:line in function: code``, or "" where it is unknown."""
    return source_line_of(str(node.meta.get("stack_trace") or ""))


def source_line_of(stack_trace: str) -> str:
    """The innermost line of a stack trace that is not torch's own, as ``source_line`` words it."""
    frames = stack_trace.strip().split("File ")
    own = [frame for frame in frames[1:] if _TORCH not in frame.partition("\n")[0]]
    lines = [line.strip() for line in (own or frames)[-1].splitlines() if line.strip()]
    if not lines or '"' not in lines[0]:
        return ""
    path, _, rest = lines[0].lstrip('"').partition('"')
    number = rest.partition("line ")[2].split(",")[0].strip()
    function = _RESUMED.sub(r"\1", rest.partition(" in ")[2].strip())
    text = f"{os.path.basename(path)}:{number} in {function}"
    return f"{text}: {lines[1]}" if len(lines) > 1 else text


def place(node: fx.Node) -> str:
    """Where a node comes from: the user's source line; where there is none, as of the layers of a
    ``torch.nn.Sequential``, the module, ``module 1.0 (BatchNorm1d)``; of an argument, where it is first used."""
    used = next(iter(node.users), None) if node.op in ("placeholder", "get_attr") else None
    return source_line(node) or module_of_user(node) or ("" if used is None else place(used))


def place_of(graph: fx.Graph) -> str:
    """Where a graph begins: the first place that is known of it."""
    return next(filter(None, map(place, graph.nodes)), "")


def module_of_user(node: fx.Node) -> str:
    """The innermost module of the user's that made a node, ``module 1.0 (BatchNorm1d)``; "" where it is unknown."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = getattr(kind, "__name__", str(kind).rpartition(".")[2])
    return " ".join(part for part in ("module", _OWNER.sub("", str(path)), f"({name})") if part)


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node that calls an operator, by name, defaults filled in."""
    return arguments.bind(compat.schema(node.target), node.args, node.kwargs)
