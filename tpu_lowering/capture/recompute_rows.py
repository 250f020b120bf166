"""Recompute rows: the backward computes a softmax again of what it was computed of, and a few numbers a row.

Before, in AOTAutograd's joint graph::

    wide = prims.convert_element_type(logits, f32)         # logits: bf16
    logs = aten._log_softmax(wide, 1, False)
    loss = aten.gather(logs, 1, labels)
    d_wide = aten._log_softmax_backward_data(d_logs, logs, 1, f32)      # logs are saved: 4 bytes an element

After::

    wide = prims.convert_element_type(logits, f32)
    amax = aten.amax(wide, [1], True)
    shifted = aten.sub(wide, amax)
    log = aten.log(aten.sum(aten.exp(shifted), [1], True))
    logs = aten.sub(shifted, log)                          # in the backward again, of logits, amax and log
    loss = aten.gather(logs, 1, labels)
    d_wide = aten._log_softmax_backward_data(d_logs, logs, 1, f32)

Torch's partitioner knows of an operator that holds whole rows only that it is dear. Of its parts it saves the logits,
which are there anyway, as narrow as they are, and the two reductions. The parts are those of torch's own
decomposition, so values are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from tpu_lowering import compat
from tpu_lowering.fuse.attention.training.insertion import PARTITIONING
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.types import element_type

aten = compat.aten

GRADIENTS = {
    aten._log_softmax.default: aten._log_softmax_backward_data.default,
    aten._softmax.default: aten._softmax_backward_data.default,
}
"""The operator that takes rows for their gradient, by the one that computes them."""

FORMS = frozenset((
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.t.default, aten.alias.default, aten.detach.default, aten.expand.default, aten.squeeze.dim,
    aten.squeeze.default, aten.unsqueeze.default, aten.slice.Tensor, aten.select.int,
))  # fmt: skip
"""Operators whose results lie in the memory of their first operand."""


def recompute_rows(graph: fx.Graph, results: int) -> list[Action]:
    """Has the backward compute rows again that would be saved for it, where that holds no more memory.

    Args:
        graph: a joint graph; edited.
        results: how many of its results are the forward's.

    Returns:
        For each operator that was taken apart, what that spares.
    """
    returned, backward = edges(graph, results)
    found = [node for node in graph.nodes if node not in returned and _is_saved_for_its_gradient(node, backward)]
    actions = [Action("moved", node.name, graphs.source_line(node), "TL524", _reason(node), 0) for node in found]
    for node in found:
        take_apart(graph, node)
    return actions


def edges(graph: fx.Graph, results: int) -> tuple[set[fx.Node], set[fx.Node]]:
    """What the forward of a joint graph returns, as what it is a view of; and what is the backward's.

    Args:
        graph: the joint graph.
        results: how many of its results are the forward's.
    """
    outputs: Any = graph.output_node().args[0]
    returned = {_memory_of(node) for node in outputs[:results] if isinstance(node, fx.Node)}
    return returned, backward_of(graph)


def backward_of(graph: fx.Graph) -> set[fx.Node]:
    """What depends on the gradients that a joint graph or a backward is given, and these."""
    return reached(node for node in graph.find_nodes(op="placeholder") if "tangents" in str(node.target))


def _memory_of(node: fx.Node) -> fx.Node:
    """What a view is a view of; a node itself that is none."""
    while node.target in FORMS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def reached(sources: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on some of a graph, and these."""
    found = set(sources)
    for node in next(iter(found)).graph.nodes if found else ():
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_saved_for_its_gradient(node: fx.Node, backward: Collection[fx.Node]) -> bool:
    """Whether a node computes rows that the backward takes for nothing but values computed element by element, or for
    their gradient; and whether what they are computed of is no larger."""
    gradient = GRADIENTS.get(node.target)  # type: ignore[arg-type]
    if gradient is None or node.meta.get("recompute") is not None or node in backward:
        return False
    value = node.meta["val"]
    if value.dim() == 0 or any(type(size) is int and size == 0 for size in value.shape):
        return False
    users = list(_users(node, backward))
    if not any(user.target is gradient for user in users):
        return False
    if any(user.target is not gradient and not is_pointwise(user) for user in users):
        return False
    return node.target is aten._log_softmax.default or _source(node).meta["val"].itemsize < value.itemsize


def _users(node: fx.Node, backward: Collection[fx.Node]) -> Iterable[fx.Node]:
    """What the backward computes of a node, or of views of it."""
    for user in node.users:
        if user.target in FORMS:
            yield from _users(user, backward)
        elif user in backward:
            yield user


def is_pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target is compat.prims.convert_element_type.default


def _source(node: fx.Node) -> fx.Node:
    """What rows are computed of, before it was converted."""
    source: Any = node.args[0]
    while source.target in FORMS or source.target in CASTS:
        source = source.args[0]
    return source


CASTS = (compat.prims.convert_element_type.default, aten._to_copy.default)


def _reason(node: fx.Node) -> str:
    source = _source(node)
    element = element_type(source.meta["val"].dtype)
    return f"the backward computes it again, of {source.name} ({element}) and two numbers a row, instead of holding it"


def take_apart(graph: fx.Graph, node: fx.Node) -> None:
    """Puts the parts of a softmax, or of its logarithm, in its place: reductions, and what is computed again."""
    given, narrow = graphs.bound(node), node.meta["val"].dtype
    x, dim = given["self"], given["dim"]
    wide = torch.promote_types(x.meta["val"].dtype, torch.float32)

    def call(target: Callable[..., Any], *args: Any) -> fx.Node:
        return graphs.call(graph, target, *args)

    def again(target: Callable[..., Any], *args: Any) -> fx.Node:
        made = call(target, *args)
        made.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        return made

    with graphs.recorded(graph) as new, graphs.inserting_for(node):
        convert = compat.prims.convert_element_type.default
        source = x if x.meta["val"].dtype == wide else call(convert, x, wide)
        shifted = again(aten.sub.Tensor, source, call(aten.amax.default, source, [dim], True))
        exp = again(aten.exp.default, shifted)
        total = call(aten.sum.dim_IntList, exp, [dim], True)
        if node.target is aten._log_softmax.default:
            result = again(aten.sub.Tensor, shifted, call(aten.log.default, total))
        else:
            result = again(aten.div.Tensor, exp, total)
        result = result if wide == narrow else again(convert, result, narrow)
    result.meta["val"] = node.meta["val"]  # in the layout of eager's operator
    for made in new:
        made.meta.update({key: node.meta[key] for key in PARTITIONING if key in node.meta})
    graphs.replace(node, result)
