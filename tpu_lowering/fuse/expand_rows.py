"""Expand rows: an operator that holds whole rows becomes its parts, where a kernel is made of one of them.

Before::

    softmax = aten._softmax(x, -1, False)

After::

    amax = aten.amax(x, [-1], True)
    sub = aten.sub(x, amax)
    exp = aten.exp(sub)
    sum = aten.sum(exp, [-1], True)
    div = aten.div(exp, sum)

An operator whose parts no kernel takes in stays whole: its own lowering may move fewer bytes than its parts. Whether
one does is tried, on a copy of the graph.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering.fuse.fuse_long_rows import FuseLongRows
from tpu_lowering.fuse.fuse_rows import FuseRows
from tpu_lowering.fuse.replace_by_kernel import PARTS
from tpu_lowering.fuse.rows.expand import PART_OF, Traces, expand, merge_equal, parts_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action


@dataclasses.dataclass(frozen=True)
class ExpandRows:
    """See the module's docstring."""

    name: str = "expand_rows"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        traces: Traces = {}
        parts, refusals = _tried(graph, traces)
        expand(graph, [node for node in list(graph.nodes) if node.name in parts], traces)
        return refusals


def _tried(graph: fx.Graph, traces: Traces) -> tuple[set[str], list[Action]]:
    """Names of the operators of which kernels are made, had all been taken apart, and why none is made of others; adds
    to the traces."""
    whole = {node.name: node for node in graph.nodes if parts_of(node) is not None}
    if not whole or graph.owning_module is None:
        return set(), []
    tried = graphs.copy_module(graph.owning_module).graph
    expand(tried, [node for node in tried.nodes if node.name in whole], traces)
    merge_equal(tried)
    part_of, actions = dict[str, str](), list[Action]()
    for pass_ in (FuseRows(), FuseLongRows()):
        part_of |= _part_of(tried)
        actions += pass_(tried)
    part_of |= _part_of(tried)
    fused = {name for call in graphs.kernel_calls(tried) for name in call.meta.get(PARTS, ())}
    refused = [(whole.get(part_of.get(action.node, "")), action) for action in actions if action.kind == "unfused"]
    return fused, [
        dataclasses.replace(action, node=node.name)
        for node, action in refused
        if node is not None and node.name not in fused
    ]


def _part_of(graph: fx.Graph) -> dict[str, str]:
    return {node.name: node.meta[PART_OF] for node in graph.nodes if PART_OF in node.meta}
