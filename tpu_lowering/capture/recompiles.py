"""Why something was compiled again: other sizes beneath one graph, or a guard of Dynamo that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
from torch import fx

from tpu_lowering import compat
from tpu_lowering.capture.rounding import size_symbols
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action


def new_sizes(graph: fx.Graph, old: Mapping[sympy.Symbol, Any], new: Mapping[sympy.Symbol, Any]) -> Action:
    """Why one more program of a graph is compiled: the sizes that differ from those of the program before."""
    sources = size_symbols(graph)
    changed = [symbol for symbol in new if old.get(symbol) != new[symbol] and symbol in sources]
    texts = [
        f"{compat.size_source(sources[symbol], symbol) or symbol} was {old.get(symbol)}, is {new[symbol]}"
        for symbol in sorted(changed, key=str)
    ]
    reason = "; ".join(texts) or "arguments lie otherwise in memory"
    return Action("recompiled", graph.output_node().name, graphs.place_of(graph), "TL512", reason, 0)


def changed_names(graph: fx.Graph) -> Action:
    """Why programs of a graph are compiled again without a reason in their arguments."""
    reason = "a kernel reads a name that has another value than when it was traced"
    return Action("recompiled", graph.output_node().name, graphs.place_of(graph), "TL514", reason, 0)


def failed_guard(graph: fx.Graph) -> list[Action]:
    """Why Dynamo captures a function again; nothing the first time."""
    reason = compat.recompile_reason()
    return [Action("recompiled", "graph", graphs.place_of(graph), "TL513", reason, 0)] if reason else []
