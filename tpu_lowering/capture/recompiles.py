"""Why something was compiled again: other sizes beneath one graph, or a guard of Dynamo that failed."""

from __future__ import annotations

import re
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
    said, _, stack = compat.recompile_reason().partition("\n")
    if not said:
        return []
    where = graphs.source_line_of(stack) or graphs.place_of(graph)
    return [Action("recompiled", "graph", where, "TL513", guard_in(said), 0)]


def guard_in(said: str) -> str:
    """The guard in what Dynamo says of one: without the number of a compilation before it, and the line behind it."""
    return re.sub(r"\s+# .*", "", re.sub(r"^[!\d/_]+: ", "", said))


def remedy_for(guard: str) -> str:
    """What a user can do about a guard that fails; "" for a kind that is not known."""
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, guard):
            return remedy.format(*found.groups())
    return ""


REMEDIES = (
    (r"tensor '(.+)' size mismatch at index (\d+)", "mark the size beforehand: torch._dynamo.mark_dynamic({0}, {1})"),
    (r"tensor '(.+)' stride mismatch", "give it in one order in memory: {0}.contiguous()"),
    (r"tensor '(.+)' dtype mismatch", "give {0} in one dtype, or nothing to do: each dtype has a program of its own"),
    (r"tensor '(.+)' rank mismatch", "give {0} with one number of dimensions, or nothing to do"),
    (r"tensor '(.+)' requires_grad mismatch", "let {0} require a gradient in all calls or in none: {0}.detach()"),
    (r"tensor '(.+)' dispatch key set mismatch", "give {0} on one device, and call all in inference mode or none"),
    (r"GLOBAL_STATE changed: .*grad_mode", "call it always under torch.no_grad(), or never"),
    (r"GLOBAL_STATE changed: (.*)", "keep torch's settings between calls: {0}"),
    (r"Duplicate tensors? found: (.*)", "give one tensor twice in all calls or in none: {0}"),
    (r"^2 <= [^<]*$", "nothing to do: sizes of 0 and 1 have programs of their own"),
    (r"\.size\(\)\[\d+\]", "leave out what compares the size, or nothing to do: each outcome has a program of its own"),
    (r"^(?:not )?len\((.+?)\)", "keep the length of {0}"),
    (r"^(.+) is (?:not )?None$", "give {0} in all calls or in none"),
    (r"___check_type_id\((.+?), \d+\)", "keep the type of {0}"),
    (r"expected type of '(.+?)' to be a tensor type", "give {0} as a tensor in all calls, or as a parameter in all"),
    (r"___check_obj_id\((.+?), \d+\)", "give the same object as {0} in all calls"),
    (r"^(.+) == -?[\d.e+-]+$", "keep {0} equal, or make it a tensor: torch.tensor({0})"),
    (r"^(.+) == ", "keep {0} equal"),
)  # fmt: skip
"""What to do, by the kind of guard."""
