"""Recompute norms: the backward computes a batch norm again of its images, which it has anyway, and its statistics.

Before, in AOTAutograd's joint graph::

    norm = aten._native_batch_norm_legit_functional(x, weight, bias, running_mean, running_var, True, 0.1, 1e-5)
    normed = getitem(norm, 0)
    relu = aten.relu(normed)                               # saved, beside x
    d_relu, d_kernel, _ = aten.convolution_backward(d_y, relu, ...)

After::

    norm = aten._native_batch_norm_legit_functional(x, weight.float(), bias.float(), ...)    # float32 statistics
    normed = ((x.float() - mean) * rstd * weight + bias).to(bfloat16)                        # in the backward again
    relu = aten.relu(normed)
    d_relu, d_kernel, _ = aten.convolution_backward(d_y, relu, ...)

The gradient of a norm takes ``x``: what is computed of it element by element is no third image to write and read where
a convolution's fusion computes it, as XLA's do on a TPU. Statistics are kept in float32, or the backward would compute
other values than the forward did. What the norm's own gradient is given is rounded as before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from tpu_lowering import compat
from tpu_lowering.capture.recompute_rows import edges, is_pointwise
from tpu_lowering.fuse.attention.training.insertion import PARTITIONING
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

aten = compat.aten

NORM = aten._native_batch_norm_legit_functional.default
GRADIENT = aten.native_batch_norm_backward.default


def recompute_norms(graph: fx.Graph, results: int) -> list[Action]:
    """Has the backward compute images again that are one norm's, and activations of them.

    Args:
        graph: a joint graph for a TPU; edited.
        results: how many of its results are the forward's.

    Returns:
        For each norm that was taken apart, what that spares.
    """
    returned, backward = edges(graph, results)
    found = [(node, again) for node in graph.nodes if (again := _saved(node, backward, returned))]
    actions = list[Action]()
    for node, again in found:
        for one in again:
            one.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        actions.append(Action("moved", node.name, graphs.source_line(node), "TL524", _reason(node), 0))
        take_apart(graph, node)
    return actions


def _saved(node: fx.Node, backward: Collection[fx.Node], returned: set[fx.Node]) -> list[fx.Node]:
    """What is computed element by element of a training norm alone, if the backward takes it, and the norm's input."""
    if node.target is not NORM or not node.args[5] or not all(isinstance(one, fx.Node) for one in node.args[:5]):
        return []
    first = _result(node, 0)
    x: Any = node.args[0]
    if first is None or node.meta.get("recompute") is not None or not _is_given_to_a_gradient(x):
        return []
    again = list(_alone(first, backward))
    if not any(user in backward and user.target is not GRADIENT for one in again for user in one.users):
        return []
    return [] if returned.intersection(again) or any("recompute" in one.meta for one in again) else again


def _is_given_to_a_gradient(x: fx.Node) -> bool:
    return x.op != "placeholder" and any(user.target is GRADIENT and user.args[1] is x for user in x.users)


def _alone(node: fx.Node, backward: Collection[fx.Node]) -> Iterator[fx.Node]:
    """A node, and what the forward computes of it and no other tensor, element by element."""
    yield node
    for user in node.users:
        if user not in backward and is_pointwise(user) and user.all_input_nodes == [node]:
            yield from _alone(user, backward)


def _result(node: fx.Node, at: int) -> fx.Node | None:
    return next((user for user in node.users if user.target is operator.getitem and user.args[1] == at), None)


def _reason(node: fx.Node) -> str:
    x: Any = node.args[0]
    return f"the backward computes it again, of {x.name} and two numbers a channel, instead of holding it"


def take_apart(graph: fx.Graph, node: fx.Node) -> None:
    """Puts what is computed again in the place of a norm's first result; its statistics become float32."""
    operands: Any = node.args[:5]
    x, *given = operands
    image = x.meta["val"]
    wide = torch.promote_types(image.dtype, torch.float32)

    def call(target: Callable[..., Any], *args: Any) -> fx.Node:
        return graphs.call(graph, target, *args)

    def converted(one: fx.Node, dtype: torch.dtype) -> fx.Node:
        convert = compat.prims.convert_element_type.default
        return one if one.meta["val"].dtype == dtype else call(convert, one, dtype)

    with graphs.recorded(graph) as new, graphs.inserting_for(node):
        weight, bias, *running = (converted(one, wide) for one in given)
        norm = call(NORM, x, weight, bias, *running, *node.args[5:])
        # Eager's kernel gives statistics as wide as the weight, though the operator's rule for types says otherwise.
        norm.meta["val"] = tuple(one if at == 0 else one.to(wide) for at, one in enumerate(norm.meta["val"]))
        results = [call(operator.getitem, norm, at) for at in range(5)]
    with graphs.recorded(graph) as again, graphs.inserting_for(node):
        channels = (1, -1, *(1,) * (image.dim() - 2))
        mean, rstd, scale, shift = (call(aten.view.default, one, channels) for one in (*results[1:3], weight, bias))
        normed = call(aten.mul.Tensor, call(aten.sub.Tensor, converted(x, wide), mean), rstd)
        normed = converted(call(aten.add.Tensor, call(aten.mul.Tensor, normed, scale), shift), image.dtype)
    for made in again:
        made.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    for at in range(5):
        if (old := _result(node, at)) is not None:
            with graphs.recorded(graph) as rounded, graphs.inserting_for(node):
                # Statistics as wide as the weight, as eager's gradient takes them.
                width = given[0].meta["val"].dtype if at in (1, 2) else old.meta["val"].dtype
                value = normed if at == 0 else converted(results[at], width)
            new += rounded
            old.replace_all_uses_with(value)
            graph.erase_node(old)
    normed.meta["val"] = image
    for made in new:
        made.meta.update({key: node.meta[key] for key in PARTITIONING if key in node.meta})
    graph.erase_node(node)
