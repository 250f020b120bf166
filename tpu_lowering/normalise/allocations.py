"""Allocations whose contents eager defines.

Under ``torch.use_deterministic_algorithms(True)`` with ``torch.utils.deterministic.fill_uninitialized_memory``
eager fills new memory with NaN, or the largest integer; then ``empty`` is a fill like any other.
"""

from __future__ import annotations

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import arrays, graphs
from tpu_lowering.ir.operators import ALLOCATIONS

aten = compat.aten


def fills_allocations() -> bool:
    """Whether eager defines the contents of new memory now."""
    fills = getattr(torch.utils.deterministic, "fill_uninitialized_memory")  # noqa: B009 (a property of the module)
    return torch.are_deterministic_algorithms_enabled() and bool(fills)


def define_allocations(graph: fx.Graph) -> None:
    """Replaces every allocation by the fill that eager makes of it, in place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in ALLOCATIONS:
            type_ = graphs.type_of(node)
            with graphs.inserting_for(node):
                fill = graphs.call(
                    graph, aten.full.default, list(type_.shape), arrays.poison_value(type_), dtype=type_.element.torch
                )
            graphs.replace(node, fill)
