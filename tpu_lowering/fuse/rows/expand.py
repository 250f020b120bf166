"""Operators that hold whole rows (a softmax, a normalisation, their gradients) taken apart into what a region is of.

The parts are torch's own decompositions, which compute in float32 inside where eager does. Rows put together of pieces
of rows are taken apart as ``expand_concatenated`` says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from tpu_lowering import compat
from tpu_lowering.fuse.rows.expand_concatenated import Parts, pieces_of
from tpu_lowering.fuse.space.kinds import holds_rows, kind_of
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.normalise.views import normalise_views
from tpu_lowering.session import kept

ORIGIN = "fused_from"
"""Key of a node's metadata: what the operator that it is a part of does, such as "softmax"."""

PART_OF = "part_of"
"""Key of a node's metadata: the name of the operator that it is a part of, as the graph has it before."""


def parts_of(node: fx.Node) -> Parts | None:
    """What a node that holds whole rows is computed of, and how; None for any other node."""
    if node.op != "call_function":
        return None
    if not isinstance(node.target, compat.OpOverload) or not holds_rows(node):
        return pieces_of(node)
    decomposition = decomposition_of(node.target)
    if decomposition is None:
        return None
    tensors = list(node.all_input_nodes)
    at = {used: arguments.Slot(number) for number, used in enumerate(tensors)}
    args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), at.__getitem__)

    def run(*values: Any) -> Any:
        results = decomposition(*arguments.fill(args, values), **arguments.fill(kwargs, values))
        return tuple(results) if isinstance(results, tuple) else results  # torch's named tuples are calls in a graph

    return Parts(tensors, run, arguments.key((node.target, args, kwargs)))


@kept(4096, "torch takes a millisecond to find one; as many as there are operators")
def decomposition_of(target: Any) -> Callable[..., Any] | None:
    """Torch's own decomposition of an operator; None if it has none."""
    return compat.registered_decompositions([target]).get(target)


Traces = dict[Hashable, fx.Graph]
"""The parts of nodes, as graphs, by what tells those from others."""


def expand(graph: fx.Graph, nodes: Iterable[fx.Node], traces: Traces) -> None:
    """Takes nodes apart, in place.

    Args:
        graph: edited.
        nodes: those that ``parts_of`` knows parts of.
        traces: of nodes that were taken apart before, on values of the same fake mode; added to. Equal calls on equal
            types are traced once.
    """
    for node in nodes:
        parts = parts_of(node)
        assert parts is not None
        values = [used.meta["val"] for used in parts.operands]
        key = (parts.key, *((value.dtype, value.shape, value.stride()) for value in values))
        if key not in traces:
            traces[key] = traced(graph, parts.operands, parts.run)
        _inline(graph, node, parts.operands, traces[key])
    graphs.eliminate_dead_code(graph)


def merge_equal(graph: fx.Graph) -> None:
    """One node for nodes that compute the same of the same operands, so that a region sees who shares a value."""
    known: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if kind_of(node) is None:
            continue
        described = (node.target, arguments.key(node.args), *map(arguments.key, sorted(node.kwargs.items())))
        first = known.setdefault(described, node)
        if first is not node:
            graphs.replace(node, first)


def inline(graph: fx.Graph, node: fx.Node, tensors: list[fx.Node], run: Callable[..., Any]) -> list[fx.Node]:
    """Puts what a function of a node's operands computes in the place of the node.

    Returns:
        The new nodes, which belong to the operator that the node belonged to, if it was a part of one.
    """
    return _inline(graph, node, tensors, traced(graph, tensors, run))


def traced(graph: fx.Graph, tensors: Sequence[fx.Node], run: Callable[..., Any]) -> fx.Graph:
    """The graph of a function of some nodes, whose views are boxes and reshapes."""
    with graphs.fake_mode(graph), torch.no_grad(), compat.lazy_graph_modules(True):
        # Nodes may share a recorded value, which ``make_fx`` would take for one argument.
        found = make_fx(run)(*(used.meta["val"].detach() for used in tensors)).graph
    normalise_views(found)
    _drop_whole_boxes(found)
    return found


def _inline(graph: fx.Graph, node: fx.Node, tensors: Sequence[fx.Node], parts: fx.Graph) -> list[fx.Node]:
    values: dict[Any, fx.Node] = {}
    given = iter(tensors)
    origin = (
        compat.schema(node.target).name.partition("::")[2] if isinstance(node.target, compat.OpOverload) else "pieces"
    )
    origin = node.meta.get(ORIGIN, "pieces" if origin == "cat" else origin)
    whole = node.meta.get(PART_OF, node.name)
    with graphs.inserting_for(node):
        for part in parts.nodes:
            if part.op == "placeholder":
                values[part] = next(given)
            elif part.op != "output":
                values[part] = graph.node_copy(part, values.__getitem__)
                values[part].meta = {"val": part.meta["val"], ORIGIN: origin, PART_OF: whole}
    _replace(graph, node, compat.map_arg(parts.output_node().args[0], values.__getitem__))
    return [values[part] for part in parts.nodes if part.op == "call_function"]


def _drop_whole_boxes(graph: fx.Graph) -> None:
    """Sends the users of a box that holds all of a value to the value."""
    for node in [node for node in graph.nodes if graphs.is_call(node, read_box)]:
        source, box = node.args
        if isinstance(source, fx.Node) and isinstance(box, Box) and box.is_whole(source.meta["val"].shape):
            graphs.replace(node, source)


def _replace(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    if not isinstance(results, (tuple, list)):
        graphs.replace(node, results)
        return
    for user in list(node.users):
        assert user.target is operator.getitem
        graphs.replace(user, results[user.args[1]])  # type: ignore[index]
    graph.erase_node(node)
