"""Expand rows: an operator that holds whole rows becomes its parts, where one of them would be part of a kernel.

Before::

    softmax = aten._softmax(x, -1, False)

After::

    amax = aten.amax(x, [-1], True)
    sub = aten.sub(x, amax)
    exp = aten.exp(sub)
    sum = aten.sum(exp, [-1], True)
    div = aten.div(exp, sum)

An operator whose parts no kernel would take in stays whole, in XLA's own form of it.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering.fuse.rows.expand import PART_OF, Traces, expand, merge_equal, parts_of
from tpu_lowering.fuse.rows.plans_of_graph import plans_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action


@dataclasses.dataclass(frozen=True)
class ExpandRows:
    """See the module's docstring."""

    name: str = "expand_rows"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        traces: Traces = {}
        wanted = _worth_expanding(graph, traces)
        expand(graph, [node for node in list(graph.nodes) if node.name in wanted], traces)
        return []


def _worth_expanding(graph: fx.Graph, traces: Traces) -> set[str]:
    """Names of the operators that would be part of a kernel, had they been taken apart; adds to the traces."""
    whole = [node for node in graph.nodes if parts_of(node) is not None]
    if not whole or graph.owning_module is None:
        return set()
    copied = graphs.copy_module(graph.owning_module)
    names = {node.name for node in whole}
    expand(copied.graph, [node for node in copied.graph.nodes if node.name in names], traces)
    merge_equal(copied.graph)
    members = [member for plans in plans_of(copied.graph) for found in plans for member in found.members]
    return {member.meta[PART_OF] for member in members if PART_OF in member.meta}
