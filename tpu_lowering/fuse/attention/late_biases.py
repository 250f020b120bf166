"""A bias that is computed of less than it takes itself is computed when the attention's rows are there.

XLA computes it first, since it waits for nothing, and keeps it in VMEM until it is used. Where a table of embeddings is
fetched into VMEM before, the bias lies behind it, and what would fit in one piece when the table is gone does not::

    bias = aten.amax(aten.where(buckets, table, -inf), [-2])      # table: [32, 16], bias: [512, 512, 16]

    there = together(table, value)
    bias = aten.amax(aten.where(buckets, getitem(there, 0), -inf), [-2])
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from tpu_lowering.fuse.xla.layouts import bytes_of, source_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.materialized import together

MEMBERS = 64
"""Nodes that a bias is computed by, at most: more are not looked at."""


def compute_late(
    graph: fx.Graph, biases: Sequence[fx.Node], rows: Sequence[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node], list[Action]]:
    """Appends what computes biases, of inputs that wait for the last of an attention's rows.

    Args:
        graph: edited at its insertion point, before which the rows are computed.
        biases: what is added to the scores. One that something reads before the rows are there does not wait.
        rows: queries, keys and values.

    Returns:
        The biases and the rows as they are now, and what was done.
    """
    sources = [source for row in rows if (source := source_of(row)).op == "call_function"]
    if not sources:
        return list(biases), list(rows), []
    last = max(sources)
    late: dict[fx.Node, list[fx.Node]] = {}
    waiting: dict[fx.Node, None] = {}
    for bias in biases:
        members = [] if any(user < last for user in bias.users) else _members(bias)
        inputs = {used: None for one in members for used in one.all_input_nodes if used not in members}
        if inputs and sum(map(bytes_of, inputs)) < bytes_of(bias):
            late[bias] = members
            waiting |= inputs
    if not late:
        return list(biases), list(rows), []
    given = (*waiting, last)
    there = graphs.call(graph, together, *given)
    now = {one: graphs.call(graph, operator.getitem, there, at) for at, one in enumerate(given)}
    again = [_view_again(graph, row, now) for row in rows]
    for members in late.values():
        for member in members:
            now[member] = graphs.called_again(graph, member, now)
    done = [Action.on("moved", bias, "it is computed when the attention's rows are there") for bias in late]
    return [now.get(bias, bias) for bias in biases], again, done


def _view_again(graph: fx.Graph, row: fx.Node, now: dict[fx.Node, fx.Node]) -> fx.Node:
    """Rows as they are now: views of what waits. A barrier behind the views would keep XLA from writing rows as the
    kernel reads them."""
    if row not in now and source_of(row) in now:
        _view_again(graph, row.all_input_nodes[0], now)
        now[row] = graphs.called_again(graph, row, now)
    return now.get(row, row)


def _members(bias: fx.Node) -> list[fx.Node]:
    """The nodes that compute a bias of the graph's inputs, in order, if they compute nothing else; [] for any other."""
    found, open_ = {bias: None}, [bias]
    while open_ and len(found) <= MEMBERS:
        for used in open_.pop().all_input_nodes:
            if used.op == "call_function" and used not in found:
                found[used] = None
                open_.append(used)
    is_own = all(found.keys() >= set(node.users) for node in found if node is not bias)
    is_pure = not any(node.op != "call_function" or graphs.has_effect(node) for node in found)
    return sorted(found) if len(found) <= MEMBERS and is_own and is_pure else []
