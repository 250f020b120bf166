"""Concatenate in a product: what a product makes, and something narrower beside it, is written once, by the product.

Before::

    plain = contract('ace,bde->abcd', latent, weight)    # [2, 32, 4096, 128] of a weight [32, 128, 512]
    key = aten.cat([plain, turned], -1)                  # [2, 32, 4096, 192]

After::

    wide = contract('ace,bde->abcd', latent, aten.constant_pad_nd(weight, [0, 0, 0, 64]))
    key = aten.where(arange(192) < 128, wide, aten.constant_pad_nd(turned, [128, 0]))

XLA writes the product, and reads it again to lay the other part beside it for a kernel. A product with columns of zeros
costs no bytes, and XLA selects the other part on its results. What the zeros give is selected away, so infinite and NaN
rows of the other factor are nothing to it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.fuse.xla.kept_in_vmem import kept_bytes
from tpu_lowering.fuse.xla.layouts import readers_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.contractions import contract
from tpu_lowering.ir.kernels import kernel_call

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class ConcatenateInProduct:
    """See the module's docstring."""

    name: str = "concatenate_in_product"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        least = kept_bytes(graphs.chip(graph))
        found = [(node, joined) for node in graph.nodes if (joined := _joined(node)) is not None]
        actions = [_write_once(graph, *pair) for pair in found if graphs.type_of(pair[1].product).nbytes > least]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Joined:
    """A product, and what is beside its columns.

    Attributes:
        product: a contraction.
        factor, dim: which of its factors has the columns, and in which dimension.
        other: what is beside it, of as many dimensions.
        before, after: how many columns that are not the product's are before and after them.
    """

    product: fx.Node
    factor: int
    dim: int
    other: fx.Node
    before: int
    after: int


def _joined(node: fx.Node) -> _Joined | None:
    """A concatenation for a kernel as a product and something that is no wider; None for any other node."""
    if not graphs.is_call(node, aten.cat.default) or not _is_for_kernels(node):
        return None
    given = graphs.bound(node)
    parts, rank = given["tensors"], len(shape_of(node))
    products = [part for part in parts if part.target is contract and len(part.users) == 1]
    if len(parts) != 2 or len(products) != 1 or given["dim"] % rank != rank - 1:
        return None
    (product,) = products
    at = parts.index(product)
    other = parts[1 - at]
    place = _place_of_columns(product)
    if (
        place is None
        or shape_of(other)[-1] > shape_of(product)[-1]
        or other.meta["val"].dtype != node.meta["val"].dtype
    ):
        return None
    width = shape_of(other)[-1]
    return _Joined(product, *place, _behind_expand(other), *((width, 0) if at else (0, width)))


def _place_of_columns(product: fx.Node) -> tuple[int, int] | None:
    """Which factor of a contraction has its last dimension, and where; None if both have, or if it has a bias."""
    equation, *factors = product.args
    assert isinstance(equation, str)
    terms, _, result = equation.partition("->")
    places = [(at, term.index(result[-1])) for at, term in enumerate(terms.split(",")) if result[-1] in term]
    return places[0] if len(places) == 1 and len(factors) == 2 else None


def _is_for_kernels(node: fx.Node) -> bool:
    """Whether kernels take a value, or views of it, and nothing else but the program's result does."""
    others = [user for user in readers_of(node) if user.op != "output"]
    return bool(others) and all(user.target is kernel_call for user in others)


def _behind_expand(node: fx.Node) -> fx.Node:
    """What broadcasts to a node, with its last dimension; itself if it is not expanded."""
    source: Any = node.args[0] if graphs.is_call(node, aten.expand.default) else node
    same = len(shape_of(source)) == len(shape_of(node)) and shape_of(source)[-1] == shape_of(node)[-1]
    return source if same else node


def _write_once(graph: fx.Graph, node: fx.Node, joined: _Joined) -> Action:
    product, width = joined.product, shape_of(node)[-1]
    own = shape_of(product)[-1]
    action = Action.on("moved", node, f"the product that makes {own} of {width} columns writes the others with its own")
    equation, *factors = product.args
    zeros = [0, 0] * (len(shape_of(factors[joined.factor])) - 1 - joined.dim)  # type: ignore[arg-type]
    with graphs.inserting_for(node):
        pads = [*zeros, joined.before, joined.after]
        factors[joined.factor] = graphs.call(graph, aten.constant_pad_nd.default, factors[joined.factor], pads)
        wide = graphs.call(graph, contract, equation, *factors)
        pads = [0, own] if joined.before else [own, 0]
        other = graphs.call(graph, aten.constant_pad_nd.default, joined.other, pads)
        places = graphs.call(graph, aten.arange.start_step, 0, width, device=node.meta["val"].device)
        compared = aten.ge.Scalar if joined.before else aten.lt.Scalar
        is_own = graphs.call(graph, compared, places, joined.before or own)
        made = graphs.call(graph, aten.where.self, is_own, wide, other)
    graphs.replace(node, made)
    return action
