"""Contract heads: a matrix product whose factors or results are cut into heads and permuted becomes one over the axes.

Before::

    mm = aten.mm(reshape(x, [8192, 4096]), permute(weight, [1, 0]))
    query = permute(reshape(mm, [4, 2048, 32, 128]), [0, 2, 1, 3])

After::

    query = contract('acd,bed->abce', x, reshape(weight, [32, 128, 4096]))

XLA gives the product of two matrices as a matrix, and copies that to permute what it is made of; it writes the result
of a product with more axes in the order in which it is used. The same holds for what is permuted and joined before a
product, as before an attention's output projection, and for the gradients of both.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.heads.axes import BATCHES, COLUMNS, MATRICES, AxisProduct, Computed, product_of
from tpu_lowering.fuse.heads.delay_reshapes import delay_reshapes
from tpu_lowering.fuse.heads.placed import Axis, Placed
from tpu_lowering.fuse.heads.scale_smaller import scale_smaller
from tpu_lowering.fuse.heads.split_columns import split_columns
from tpu_lowering.fuse.heads.sum_in_order import sum_in_order
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.contractions import contract

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class ContractHeads:
    """See the module's docstring."""

    name: str = "contract_heads"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        split_columns(graph)
        return sum_in_order(graph) + _contract_all(graph, MATRICES)


@dataclasses.dataclass(frozen=True)
class ContractBatches:
    """The same for products of batches of matrices, after attention has been looked for, which is made of them.

    An axis along which a factor repeats its elements, as a key does that heads share, is none of that factor's. Before
    that, numbers multiply the smaller factor (``heads.scale_smaller``).
    """

    name: str = "contract_batches"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        actions = scale_smaller(graph) + _contract_all(graph, BATCHES)
        delay_reshapes(graph)
        return actions


def _contract_all(graph: fx.Graph, targets: Sequence[object]) -> list[Action]:
    actions: list[Action] = []
    for node in [node for node in graph.nodes if node.op == "call_function" and node.target in targets]:
        product = product_of(node)
        if product is not None and product.is_moved:
            actions.append(_contract(graph, product))
    if actions:
        graphs.eliminate_dead_code(graph)
    return actions


def _contract(graph: fx.Graph, product: AxisProduct) -> Action:
    """Puts the contraction in the place of a product's results."""
    order = _without_repeats(product)
    names = _names([*order.axes, *product.left.axes])
    terms = ["".join(names[axis] for axis in one.axes) for one in (product.left, product.right, order)]
    equation = f"{terms[0]},{terms[1]}->{terms[2]}"
    with graphs.inserting_for(product.node):
        factors = [_factor(graph, one) for one in (product.left, product.right)]
        bias = [] if product.bias is None else [_along_columns(graph, product.bias, order)]
        result = graphs.call(graph, contract, equation, *factors, *bias)
        new = [(one.node, _as(graph, result, order, one)) for one in product.results]
    why = "each is computed once" if product.repeats else "no copy permutes it"
    action = Action.on("moved", product.node, f"one product over all axes of its heads, {equation}: {why}")
    for old, node in new:
        old.replace_all_uses_with(node)
    return action


def _factor(graph: fx.Graph, factor: Placed) -> fx.Node:
    """A factor with its axes as dimensions."""
    if isinstance(factor, Computed):
        return factor.work.computed(graph, list(factor.leaves), factor.axes)
    return graphs.reshaped(graph, factor.node, factor.sizes)


def _without_repeats(product: AxisProduct) -> Placed:
    """The axes of what is computed: those that both factors repeat along are none."""
    order, held = product.order, {*product.left.axes, *product.right.axes}
    kept = [(axis, size) for axis, size in zip(order.axes, order.sizes, strict=True) if axis in held]
    return Placed(order.node, tuple(axis for axis, _ in kept), tuple(size for _, size in kept))


def _names(axes: Sequence[Axis]) -> dict[Axis, str]:
    return dict(zip(dict.fromkeys(axes), string.ascii_lowercase, strict=False))


def _along_columns(graph: fx.Graph, bias: fx.Node, order: Placed) -> fx.Node:
    """A row of a product, as it broadcasts with the product's axes in an order."""
    columns = [(axis, size) for axis, size in zip(order.axes, order.sizes, strict=True) if axis[0] == COLUMNS]
    own = sorted(columns, key=lambda found: -found[0][1])
    row = graphs.reshaped(graph, bias, [size for _, size in own])
    dims = [own.index(found) for found in columns]
    row = graphs.permuted(graph, row, dims)
    shape = [size if axis[0] == COLUMNS else 1 for axis, size in zip(order.axes, order.sizes, strict=True)]
    return graphs.reshaped(graph, row, shape)


def _as(graph: fx.Graph, result: fx.Node, order: Placed, wanted: Placed) -> fx.Node:
    """The result of a contraction as one of the product's results."""
    dims = [order.axes.index(axis) for axis in wanted.axes if axis in order.axes]
    result = graphs.permuted(graph, result, dims)
    if len(dims) < len(wanted.axes):
        sizes = zip(wanted.axes, wanted.sizes, strict=True)
        result = graphs.reshaped(graph, result, [size if axis in order.axes else 1 for axis, size in sizes])
        result = graphs.call(graph, aten.expand.default, result, list(wanted.sizes))
    return graphs.reshaped(graph, result, graphs.type_of(wanted.node).shape)
