"""What a checkpointed region computes again waits for the region's gradient; what it gives is saved, as eager saves it.

XLA orders what does not depend on one another as it likes. It computed the last layer again before the gradient of the
loss, and held all values of that layer beside the gradient of the logits.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from tpu_lowering.capture.recompute_rows import backward_of, reached
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.materialized import together

REGION = "ac_graph_id"
"""Key of a node's metadata: the region of ``checkpoint`` that it was traced in."""

_WAITS = "what a checkpointed region computes again of it waits for the region's gradient"


def save_results(graph: fx.Graph, results: int) -> None:
    """Has the partitioner save what checkpointed regions give to operators outside of any. It would compute a whole
    region again for the gradient of a norm behind it.

    Args:
        graph: a joint graph; edited.
        results: how many of its results are the forward's.
    """
    outputs: Any = graph.output_node().args[0]
    forward = {node for node in outputs[:results] if isinstance(node, fx.Node)}
    for node in reversed(graph.nodes):
        if forward.intersection(node.users):
            forward.add(node)
    for node in forward:
        users = [user for user in node.users if user in forward]
        if REGION in node.meta and any(REGION not in user.meta for user in users):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def recompute_late(graph: fx.Graph) -> list[Action]:
    """Has what a region computes again of a saved value begin behind the first gradient that is computed with it.

    Args:
        graph: of a backward, as the partitioner made it; edited.

    Returns:
        For each value that waits, for what.
    """
    gradients = backward_of(graph)
    read = dict[tuple[fx.Node, int], list[fx.Node]]()
    for node in graph.nodes:
        if node.op == "call_function" and REGION in node.meta and node not in gradients:
            for value in filter(_is_saved, node.all_input_nodes):
                read.setdefault((value, node.meta[REGION]), []).append(node)
    place = {node: at for at, node in enumerate(graph.nodes)}
    found = (_delay(graph, value, readers, gradients, place) for (value, _), readers in read.items())
    actions = [action for action in found if action is not None]
    if actions:
        graphs.sort_by_use(graph)
    return actions


def _delay(
    graph: fx.Graph,
    value: fx.Node,
    readers: list[fx.Node],
    gradients: Collection[fx.Node],
    place: Mapping[fx.Node, int],
) -> Action | None:
    again = [node for node in reached(readers) if node not in gradients]
    users = {user for node in again for user in node.users if user in gradients and user.op == "call_function"}
    first = min(users, key=place.__getitem__, default=None)
    given = [] if first is None else [one for one in first.all_input_nodes if one in gradients]
    tensors = [one for one in given if isinstance(one.meta.get("val"), torch.Tensor)]
    if not tensors:
        return None
    _wait(graph, value, readers, tensors[0])
    return Action("moved", value.name, graphs.source_line(readers[0]), "", _WAITS, 0)


def _wait(graph: fx.Graph, value: fx.Node, readers: list[fx.Node], gradient: fx.Node) -> None:
    """Puts both behind one barrier: XLA leaves out of a barrier what nothing uses behind it."""
    with graph.inserting_after(gradient):
        both = graph.call_function(together, (value, gradient))
    both.meta.update(val=(value.meta["val"], gradient.meta["val"]), stack_trace=readers[0].meta.get("stack_trace"))
    for index, (one, users) in enumerate(((value, readers), (gradient, list(gradient.users)))):
        with graph.inserting_after(both):
            there = graph.call_function(operator.getitem, (both, index))
        there.meta.update(val=one.meta["val"], stack_trace=both.meta["stack_trace"])
        for user in users:
            if user is not both:
                user.replace_input_with(one, there)


def _is_saved(node: fx.Node) -> bool:
    """Whether a node is a value that the forward saves, and no input of it."""
    is_tensor = isinstance(node.meta.get("val"), torch.Tensor)
    return node.op == "placeholder" and is_tensor and not node.name.startswith(("primals", "tangents"))
