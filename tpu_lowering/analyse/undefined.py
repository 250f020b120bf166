"""Which values of a graph are undefined: memory that nothing has written yet.

``empty*`` is undefined, and so is a view, copy, slice or conversion of an undefined value. A value that was
written in part counts as defined; reads of its unwritten part are traced to the allocation beforehand, by
``passes.simplify_views``.
"""

from __future__ import annotations

from torch import fx

from tpu_lowering.ir.boxes import write_box
from tpu_lowering.ir.operators import ALLOCATIONS, MOVES


def undefined_values(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes whose every element is undefined."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if (
            node.target in ALLOCATIONS
            or (node.target in MOVES and node.args[0] in found)
            or (node.target is write_box and node.args[0] in found and node.args[1] in found)
        ):
            found.add(node)
    return frozenset(found)


def origin(node: fx.Node) -> fx.Node:
    """The node whose elements a chain of moves hands on."""
    while node.op == "call_function" and node.target in MOVES:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node
