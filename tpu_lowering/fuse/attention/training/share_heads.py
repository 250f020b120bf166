"""Keys and values that heads share, in training: the operator takes them once, and they are saved so.

Before, in a graph with forward and backward::

    many = reshape(expand(key, [batch, heads, 4, length, width]), [batch, heads * 4, length, width])
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, many, ...)
    d_query, d_many, ... = aten._scaled_dot_product_flash_attention_for_cpu_backward(d_out, query, many, ...)
    d_key = aten.sum(reshape(d_many, [batch, heads, 4, length, width]), [2])

After::

    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, ...)
    d_query, d_key, ... = aten._scaled_dot_product_flash_attention_for_cpu_backward(d_out, query, key, ...)

What a backward is given of the keys is what the operator takes of them: four times as much, if they are repeated first.
The gradient of a shared head is the sum over the heads that share it, which the operator gives.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.operands import Rows, rows_of
from tpu_lowering.fuse.attention.sites import BACKWARD, FORWARD
from tpu_lowering.fuse.attention.training.gradients import summed
from tpu_lowering.fuse.attention.training.insertion import inserting_for
from tpu_lowering.ir import graphs
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class Repeated:
    """An operator and its gradient, of keys and values that are repeated for them.

    Attributes:
        forward, backward: the two calls.
        key, value: the rows behind the repetition.
        sums: of the gradients of key and value, the sums over the heads that share them; None for one nobody uses.
    """

    forward: fx.Node
    backward: fx.Node
    key: Rows
    value: Rows
    sums: tuple[Rows | None, Rows | None]


def share_heads(graph: fx.Graph) -> None:
    """Rewrites every attention of a joint graph whose keys are repeated, in place."""
    for found in [found for node in graph.nodes if (found := _repeated(node)) is not None]:
        _share(graph, found)


def _repeated(node: fx.Node) -> Repeated | None:
    if node.op != "call_function" or node.target is not FORWARD:
        return None
    given = graphs.bound(node)
    key, value = rows_of(given["key"]), rows_of(given["value"])
    heads = graphs.type_of(given["key"]).shape[1]
    if key.repeat == 1 or key.repeat != value.repeat or heads % key.repeat or key.swapped or value.swapped:
        return None
    backward = {user for user in given["key"].users if _is_backward_of(user, node)}
    if len(backward) != 1:
        return None
    (one,) = backward
    by_key, by_value = (_gradient(one, at) for at in (1, 2))
    sums = [None if found is None else summed(Rows(found), key.repeat) for found in (by_key, by_value)]
    if sums.count(None) > (by_key, by_value).count(None):
        return None
    return Repeated(node, one, key, value, (sums[0], sums[1]))


def _is_backward_of(user: fx.Node, forward: fx.Node) -> bool:
    if user.op != "call_function" or user.target is not BACKWARD:
        return False
    given, before = graphs.bound(user), graphs.bound(forward)
    same = all(given[name] is before[name] for name in ("query", "key", "value", "attn_mask"))
    results = [_itself(given[name]) for name in ("out", "logsumexp")]
    return same and all(graphs.is_call(one, operator.getitem) and one.args[0] is forward for one in results)


def _itself(node: fx.Node) -> fx.Node:
    """The value that a node is: what is saved of a result is detached from it."""
    while node.op == "call_function" and node.target in IDENTITIES:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def _gradient(backward: fx.Node, at: int) -> fx.Node | None:
    return next((user for user in backward.users if user.args[1] == at), None)


def _arguments(node: fx.Node, others: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with others in their place, by position where they have one: one of them is called ``out``,
    as is what generated code says of every result."""
    given, own = graphs.bound(node) | others, compat.schema(node.target).arguments  # type: ignore[arg-type]
    args = tuple(given[one.name] for one in own if not one.kwarg_only)
    return args, {one.name: given[one.name] for one in own if one.kwarg_only}


def _share(graph: fx.Graph, found: Repeated) -> None:
    batch, heads = graphs.type_of(graphs.bound(found.forward)["key"]).shape[:2]
    shared: dict[str, Any] = {}
    with inserting_for(found.forward):
        for name, rows in (("key", found.key), ("value", found.value)):
            shape = [batch, heads // rows.repeat, rows.length, rows.width]
            shared[name] = graphs.call(graph, aten.reshape.default, rows.node, shape)
    found.forward.args, found.forward.kwargs = _arguments(found.forward, shared)
    with inserting_for(found.backward):
        args, kwargs = _arguments(found.backward, shared)
        backward = graphs.call(graph, BACKWARD, *args, **kwargs)
        results = [graphs.call(graph, operator.getitem, backward, at) for at in range(3)]
    for at, (result, rows) in enumerate(zip(results, (None, *found.sums), strict=True)):
        before = _gradient(found.backward, at)
        if before is None:
            continue
        if rows is None:
            graphs.replace(before, result)
            continue
        with inserting_for(rows.node):
            result = result if not rows.swapped else graphs.call(graph, aten.permute.default, result, [0, 1, 3, 2])
            result = graphs.call(graph, aten.reshape.default, result, list(graphs.type_of(rows.node).shape))
        graphs.replace(rows.node, result)
