"""How many programs a runtime makes of a graph: where its rules cut, and what a cut costs.

The rule of torch_tpu 0.2.0: a kernel call with an aliased (donated) operand is compiled on its own, cut
off before and after (``OpSplitMode::kSplitBoth``). Everything between two cuts is one program, and a
buffer allocated before a cut is a device operation that writes it. A collective is cut off in the same way.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.collectives import EXCHANGES
from tpu_lowering.ir.kernels import kernel_call

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """Where a runtime cuts.

    Attributes:
        runtime: its name.
        source: where the rule comes from.
        splits_at_alias: whether a call with an aliased operand is cut off on both sides, and a collective.
    """

    runtime: str
    source: str
    splits_at_alias: bool


RULES: dict[str, SplitRule] = {
    rule.runtime: rule
    for rule in (
        SplitRule("torch_tpu", "OpSplitMode::kSplitBoth of torch_tpu 0.2.0 for calls with donated operands", True),
        SplitRule("torch_xla", "lazy tensors of torch_xla 2.9: one graph up to the step boundary", False),
        SplitRule("jax", "one jax.jit function; XLA copies an aliased operand that is still in use", False),
    )
}


def aliased_operands(node: fx.Node) -> tuple[int, ...]:
    """Operand positions of a kernel call whose buffer the call writes in place."""
    operands = graphs.operands_of(node)
    return tuple(index for index in graphs.kernel_of(node).tied() if operands[index] is not None)


def partition(graph: fx.Graph, rule: SplitRule) -> list[list[fx.Node]]:
    """The programs a runtime makes of a graph: its nodes, cut where the rule cuts.

    Nodes that compute nothing (placeholders, constants, ``getitem``, views of metadata) start no program.
    """
    parts: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if not _computes(node):
            continue
        aliased = graphs.is_call(node, kernel_call) and aliased_operands(node)
        if rule.splits_at_alias and (aliased or node.target in EXCHANGES):
            parts += [[node], []]
        else:
            parts[-1].append(node)
    return [part for part in parts if part]


def program_count(graph: fx.Graph, rule: SplitRule) -> int:
    """Number of programs; a graph that computes nothing is none."""
    return len(partition(graph, rule))


def is_view(node: Any) -> bool:
    """Whether a node is metadata to a runtime: a reshape, which in a normalised graph moves nothing."""
    return graphs.is_call(node, aten.reshape.default)


def _computes(node: Any) -> bool:
    named = "getitem" in str(getattr(node.target, "__name__", ""))
    return node.op == "call_function" and not named and not is_view(node)
