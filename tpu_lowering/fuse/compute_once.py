"""Compute once: what a matrix product reads is computed with the product before it, not inside the one that reads it.

Before::

    gate, up = aten.mm(x, w_gate), aten.mm(x, w_up)
    hidden = aten.mul(aten.silu(gate), up)
    y = aten.mm(hidden, w_down)

After::

    hidden = materialize(aten.mul(aten.silu(gate), up))
    y = aten.mm(hidden, w_down)

XLA computes pointwise work inside the product that reads it, or, where that reads rows often, by itself. Either way it
writes and reads all values that the work is made of. In front of a barrier it computes the work on the results of a
product, and writes and reads one value less.

So it is with a value that two products or more read, and that is put together of parts which lie elsewhere, as the
gradient of rotated queries is: XLA would lay the parts out again for each.

So it is with a value that is widened for products alone. XLA widens it where it is computed, and writes it wide.

And so, whatever its size, with the smaller of two convolutions that are summed, if it has a bias and is narrower than
float32: XLA writes it without the bias, in float32, and adds that where it computes the sum.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import PRODUCTS, shape_of, tensor_operands
from tpu_lowering.fuse.xla.kept_in_vmem import kept_bytes
from tpu_lowering.fuse.xla.layouts import is_view, readers_of, source_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.boxes import write_box
from tpu_lowering.ir.materialized import materialize

aten = compat.aten

MADE_OF = 2
"""How many values of its size one is made of at least: of a single one the product reads as much as of the value."""

WIDE = "written with its bias, and not in float32 for the sum with another convolution to add it"
"""Why a convolution is computed before what it is summed with."""

NARROW = "written as narrow as it is, and widened in the product that reads it"
"""Why what is widened is computed before."""

ASSEMBLED = (write_box, aten.cat.default, aten.constant_pad_nd.default)
"""Operators whose results are put together of parts."""


@dataclasses.dataclass(frozen=True)
class ComputeOnce:
    """See the module's docstring."""

    name: str = "compute_once"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        least = kept_bytes(graphs.chip(graph))
        reasons = dict[fx.Node, str]()
        for node in filter(is_pointwise, graph.nodes):
            is_large = graphs.type_of(node).nbytes > least
            if is_large and (reason := _reason(node)):
                reasons.setdefault(node, reason)
            if is_large and (first := _widened(node)) is not None:
                reasons.setdefault(first, NARROW)
            if (first := _wide_until_summed(node)) is not None:
                reasons.setdefault(first, WIDE)
        return [_materialize(graph, node, reason) for node, reason in reasons.items()]


def _widened(node: fx.Node) -> fx.Node | None:
    """What a node widens for products alone; None for any other node, and for what is there before."""
    if not graphs.is_call(node, aten._to_copy.default) or not _products_of(node):
        return None
    (source,) = tensor_operands(node)
    if graphs.type_of(source).nbytes >= graphs.type_of(node).nbytes:
        return None
    source = source_of(source)
    return source if source.op == "call_function" and source.target is not materialize else None


def _wide_until_summed(node: fx.Node) -> fx.Node | None:
    """The smaller of two convolutions that a node sums, if XLA would add its bias there; None for any other node."""
    terms = tensor_operands(node) if node.target is aten.add.Tensor else []
    if len(terms) != 2 or any(one.target is not aten.convolution.default or len(one.users) > 1 for one in terms):
        return None
    smaller = min(terms, key=lambda one: graphs.type_of(graphs.bound(one)["weight"]).nbytes)
    narrow = smaller.meta["val"].dtype in (torch.bfloat16, torch.float16)
    return smaller if narrow and graphs.bound(smaller)["bias"] is not None else None


def _reason(node: fx.Node) -> str:
    """Why pointwise work is computed once; empty where it stays as it is."""
    products = _products_of(node)
    made_of = _made_of(node) if products else set[fx.Node]()
    count = len(made_of)
    if count < MADE_OF:
        return ""
    if products == 1 and any(_is_product_for(used, node) for used in made_of):
        return f"computed with the product before, and not of {count} values of its size inside the one that reads it"
    if products > 1 and any(used.target in ASSEMBLED for used in made_of):
        return f"{products} products read it: its {count} parts would be laid out again for each"
    return ""


def _products_of(node: fx.Node) -> int:
    """How many matrix products read a value, or a view of it; 0 where anything else does, too."""
    users = set(readers_of(node))
    return len(users) if all(user.target in PRODUCTS for user in users) else 0


def _is_product_for(used: fx.Node, node: fx.Node) -> bool:
    """Whether a value is a product that nothing but a node is made of."""
    is_product = used.target in PRODUCTS
    while used is not node and len(used.users) == 1:
        (used,) = used.users
    return is_product and used is node


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


def _materialize(graph: fx.Graph, node: fx.Node, reason: str) -> Action:
    with graphs.inserting_for(node, after=True):
        held = graphs.call(graph, materialize, node)
    node.replace_all_uses_with(held, delete_user_cb=lambda user: user is not held)
    return Action.on("moved", node, reason)
