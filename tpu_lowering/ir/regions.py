"""Regions: the sub-graphs of control flow, as values among the arguments of a call.

A graph is processed with its regions: ``modules`` lists them, innermost first, and every step and pass visits each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Region:
    """A sub-graph that reads nothing but its placeholders and its own constants.

    Regions compare by identity; each is an argument of one call.

    Attributes:
        name: what generated code calls it.
        module: its graph, whose output is a tuple; edited in place like the graph around it.
    """

    name: str
    module: fx.GraphModule

    def __repr__(self) -> str:
        """The name as Python would write it: torch.fx compiles the text of a graph."""
        return self.name

    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "placeholder"]

    def outputs(self) -> list[Any]:
        return list(self.module.graph.output_node().args[0])  # type: ignore[arg-type]

    def set_outputs(self, outputs: list[Any]) -> None:
        self.module.graph.output_node().args = (tuple(outputs),)


def regions_of(node: fx.Node) -> list[Region]:
    """The regions among a call's arguments and the items of those, in order."""
    found: list[Region] = []
    if isinstance(node.target, compat.OpOverload):  # takes none
        return found
    for argument in node.args:
        items = argument if isinstance(argument, (tuple, list)) else (argument,)
        found += [item for item in items if isinstance(item, Region)]
    return found


def modules(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The modules of all regions of a graph, those inside others first, then the graph's own."""
    found: list[fx.GraphModule] = []
    for node in module.graph.nodes:
        if node.op == "call_function":
            for region in regions_of(node):
                found += modules(region.module)
    return [*found, module]
