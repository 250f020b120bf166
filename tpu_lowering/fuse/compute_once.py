"""Compute once: what several matrix products read is computed before them, and not inside each.

Before::

    d_gate = aten.mul(d_silu, ...)                        # of d_hidden, gate and up
    d_weight = aten.mm(aten.permute(d_gate, [1, 0]), x)
    d_x = aten.mm(d_gate, weight)

After::

    d_gate = materialize(aten.mul(d_silu, ...))
    d_weight = aten.mm(aten.permute(d_gate, [1, 0]), x)
    d_x = aten.mm(d_gate, weight)

XLA computes pointwise work inside the product that reads it. With two such products it does so twice: each reads all
that the value is made of, and copies some of it into another order first. For one product it pays where a product makes
one of those values: XLA then computes the work on that one's results, and writes and reads one value less.
"""

from __future__ import annotations

import dataclasses
import math

from torch import fx

from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import PRODUCTS, shape_of, tensor_operands
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.layouts import is_view
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.materialized import materialize

MADE_OF = 2
"""How many values of its size one is made of at least: of a single one each product reads as much as of the value."""


@dataclasses.dataclass(frozen=True)
class ComputeOnce:
    """See the module's docstring."""

    name: str = "compute_once"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        chip = graphs.chip(graph)
        least = HEURISTICS.kept_products * chip.vmem_bytes if chip.is_tpu else 0
        found = [node for node in graph.nodes if _is_computed_again(node) and graphs.type_of(node).nbytes > least]
        return [_materialize(graph, node) for node in found]


def _is_computed_again(node: fx.Node) -> bool:
    if not is_pointwise(node) or len(made_of := _made_of(node)) < MADE_OF:
        return False
    count = _products_of(node)
    return count > 1 or (count == len(node.users) == 1 and any(_is_product_for(used, node) for used in made_of))


def _is_product_for(used: fx.Node, node: fx.Node) -> bool:
    """Whether a value is a product that nothing but a node is made of."""
    is_product = used.target in PRODUCTS
    while used is not node and len(used.users) == 1:
        (used,) = used.users
    return is_product and used is node


def _products_of(node: fx.Node) -> int:
    """How many matrix products read a value, or a view of it."""
    count = 0
    for user in node.users:
        if is_view(user):
            count += _products_of(user)
        elif user.target in PRODUCTS:
            count += 1
    return count


def _made_of(node: fx.Node) -> set[fx.Node]:
    """The values of a node's size that pointwise work makes it of: XLA reads these wherever it computes the node."""
    found, waiting, seen = set[fx.Node](), [node], set[fx.Node]()
    elements = math.prod(shape_of(node))
    while waiting:
        for used in tensor_operands(waiting.pop()):
            if used in seen or math.prod(shape_of(used)) < elements:
                continue
            seen.add(used)
            if used.op == "call_function" and (is_pointwise(used) or is_view(used)):
                waiting.append(used)
            else:
                found.add(used)
    return found


def _materialize(graph: fx.Graph, node: fx.Node) -> Action:
    with graphs.inserting_for(node, after=True):
        held = graphs.call(graph, materialize, node)
    node.replace_all_uses_with(held, delete_user_cb=lambda user: user is not held)
    count, parts = _products_of(held), len(_made_of(node))
    reason = f"{count} products read it: computed inside each, {parts} values of its size would be read {count} times"
    if count == 1:
        reason = f"computed with the product before, and not of {parts} values of its size inside the one that reads it"
    return Action.on("moved", node, reason)
