"""The gradients of an attention that code writes out, as they stand in a graph.

Of ``out = bmm(weights, value)`` with ``weights = softmax(scale * bmm(query, keyᵀ) + mask)`` they are::

    d_value = bmm(weightsᵀ, d_out)
    d_scores = scale * softmax_backward(bmm(d_out, valueᵀ), weights)
    d_query, d_keyᵀ = bmm(d_scores, key), bmm(queryᵀ, d_scores)

If weights are dropped, ``out`` and ``d_value`` are products of ``weights * kept / (1 - p)``, and ``bmm(d_out, valueᵀ)``
is multiplied by the same ``kept / (1 - p)``. There are views, conversions of type, and zeros where a mask hides a key.
Every use of the weights and of the gradient of the scores has to be one of these products; factors of the operands
themselves are outside of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.added_masks import unknown
from tpu_lowering.fuse.attention.dropout.factors import Dropped, dropped_by
from tpu_lowering.fuse.attention.masks import HIDDEN, Known, Term, number
from tpu_lowering.fuse.attention.operands import Rows, factor_of, keeps_rows, rows_of, swaps_rows
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.ir import graphs
from tpu_lowering.ir.operators import is_allocation

aten = compat.aten

Step = Callable[[fx.Node, fx.Node], float | None]
"""What a user multiplies a node by if it is the same matrix otherwise; None if it is something else."""


@dataclasses.dataclass(frozen=True)
class Training:
    """An attention that is written out, with its gradients.

    Attributes:
        forward: the attention, of the operands that gradients are of, with a logsumexp.
        given: the gradient of its result.
        anchor: the first product of the backward; ``given`` stands before it.
        gradients: those of query, key and value, as they stand in the graph; None where there is none.
        dropped: what the weights are multiplied by; None if they are used as they are.
    """

    forward: Attention
    given: Rows
    anchor: fx.Node
    gradients: tuple[Rows | None, ...]
    dropped: Dropped | None = None

    @property
    def backward(self) -> Attention:
        """The gradients as an attention's."""
        outputs = tuple(None if found is None else found.node for found in self.gradients)
        result = self.forward.node
        return dataclasses.replace(self.forward, outputs=outputs, given=(self.given.node, result, result))

    def moved(self, replaced: Mapping[fx.Node, fx.Node]) -> Training:
        """The same of nodes that stand in for some of its operands."""
        given = dataclasses.replace(self.given, node=replaced.get(self.given.node, self.given.node))
        return dataclasses.replace(self, forward=self.forward.moved(replaced), given=given)


def training_of(site: Attention, known: Known) -> Training | None:
    """An attention with its gradients; None if its scores or weights have any use that is none of those."""
    written = site.written
    if written is None or written.scores is not None or site.shared is None or site.soft_cap:
        return None
    found = dropped_by(site.dropped)
    if site.dropout and found is None:
        return None
    dropped = None if found is None else found[1]
    if any(term.value is not None and term.value > -math.inf and not term.adds for term in unknown(site, known)):
        return None  # where it hides all keys of a query, the scores have no gradient, but that of the operator has
    if len(site.leading) > 2 and any(math.prod(graphs.type_of(term.node).shape[:-2]) > 1 for term in site.terms):
        return None  # the operator has four dimensions
    own = _uses(written.softmax, _same, site.dropped)
    weights = own if site.dropped is None else _uses(site.dropped, _same)
    if own is None or weights is None or len(own.softmaxes) != 1:
        return None
    if site.dropped is not None and (own.found or weights.softmaxes):
        return None
    (softmax,) = own.softmaxes
    scores = _uses(softmax, lambda node, user: _of_scores(node, user, site.terms))
    by_weights = _product_behind(_argument(softmax, 0), dropped)
    if by_weights is None or scores is None or scores.softmaxes:
        return None
    query, key = rows_of(_argument(written.product, 0)), rows_of(_argument(written.product, 1), swapped=True)
    value, given = rows_of(_argument(written.result, 1)), rows_of(_argument(by_weights, 0))
    by_query, by_key, by_value = scores.products(False), scores.products(True), weights.products(True)
    is_gradient = (
        [product.rows.node for product in weights.products(False)] == [written.result]
        and rows_of(_argument(by_weights, 1), swapped=True) == value
        and given.repeat == query.repeat == 1
        and max(len(by_query), len(by_key)) == 1
        and len(by_value) < 2
        and all(product.is_with(key, written.scale) for product in by_query)
        and all(product.is_with(query, written.scale) for product in by_key)
        and all(product.is_with(given, 1.0) for product in by_value)
    )
    if not is_gradient:
        return None
    place = {node: at for at, node in enumerate(softmax.graph.nodes)}
    anchor = min((by_weights, *(product.rows.node for product in by_value)), key=place.__getitem__)
    each = [products[0].rows if products else None for products in (by_query, by_key, by_value)]
    shared = [each[0], *(rows if rows is None else summed(rows, key.repeat) for rows in each[1:])]
    if key.repeat != value.repeat or shared.count(None) > each.count(None):
        key, value = Rows(_argument(written.product, 1), swapped=True), Rows(_argument(written.result, 1))
        shared = each
    forward = dataclasses.replace(
        site, query=query, key=key, value=value, scale=written.scale, shared=None,
        outputs=(written.result, written.result),
    )  # fmt: skip
    return Training(forward, given, anchor, tuple(shared), dropped)


def _argument(node: fx.Node, at: int) -> fx.Node:
    found = node.args[at]
    assert isinstance(found, fx.Node)
    return found


@dataclasses.dataclass(frozen=True)
class _Product:
    """A product of rows with a matrix [heads, queries, keys], or with its transpose.

    Attributes:
        rows: the result, one row for each query or for each key.
        other: what the matrix is multiplied with.
        of_keys: whether the result has a row for each key.
        factor: what the matrix was multiplied by on the way.
    """

    rows: Rows
    other: Rows
    of_keys: bool
    factor: float

    def is_with(self, other: Rows, factor: float) -> bool:
        return self.other == other and math.isclose(self.factor, factor, rel_tol=1e-6)


@dataclasses.dataclass(frozen=True)
class _Uses:
    """What is made of a matrix: products, and softmaxes' gradients that it is the weights of."""

    found: tuple[_Product, ...]
    softmaxes: tuple[fx.Node, ...]

    def products(self, of_keys: bool) -> list[_Product]:
        return [product for product in self.found if product.of_keys is of_keys]


def _uses(start: fx.Node, step: Step, until: fx.Node | None = None) -> _Uses | None:
    """What is made of a matrix, through what leaves it the same; None if anything else is, but for ``until``."""
    products: list[_Product] = []
    softmaxes: list[fx.Node] = []
    waiting = [(start, False, 1.0)]
    while waiting:
        node, swapped, factor = waiting.pop()
        for user in node.users:
            if user.op != "call_function":
                return None
            if user is until or is_allocation(user):  # the one is looked at apart, the other reads no element
                continue
            if swaps_rows(user):
                waiting.append((user, not swapped, factor))
            elif (by := step(node, user)) is not None:
                waiting.append((user, swapped, factor * by))
            elif not swapped and _is_gradient_of(user, node):
                softmaxes.append(user)
            elif (product := _product(user, node, swapped, factor)) is not None:
                products.append(product)
            else:
                return None
    return _Uses(tuple(products), tuple(softmaxes))


def _same(node: fx.Node, user: fx.Node) -> float | None:
    return 1.0 if user.target is aten._to_copy.default or keeps_rows(user) else None


def _of_scores(node: fx.Node, user: fx.Node, terms: tuple[Term, ...]) -> float | None:
    """A step of the scores' gradient: what the scores were multiplied by, and zeros where a term hides keys."""
    args: Any = user.args
    if (same := _same(node, user)) is not None:
        return same
    if (factor := factor_of(user)) is not None:
        return factor
    zeros: list[tuple[Any, Any, bool]] = []
    if user.target is aten.masked_fill.Scalar or user.target is aten.masked_fill.Tensor:
        zeros = [(args[2], args[1], True)] if args[0] is node else []
    elif user.target is aten.where.self:
        zeros = [(args[2], args[0], False)] if args[1] is node else [(args[1], args[0], True)]
    hidden = [(term.node, term.where) for term in terms if term.value is not None and term.value <= HIDDEN]
    return 1.0 if any(number(value) == 0 and (mask, where) in hidden for value, mask, where in zeros) else None


def _is_gradient_of(user: fx.Node, weights: fx.Node) -> bool:
    """Whether a node is the gradient of a softmax along rows that gave the weights."""
    if user.target is not aten._softmax_backward_data.default:
        return False
    gradient, result, dim = user.args[:3]
    rank = len(graphs.type_of(weights).shape)
    return result is weights and gradient is not weights and dim % rank == rank - 1  # type: ignore[operator]


def _product(user: fx.Node, node: fx.Node, swapped: bool, factor: float) -> _Product | None:
    """The product that a user is of a matrix, or, ``swapped``, of its transpose."""
    if user.target is not aten.bmm.default or user.args[0] is user.args[1]:
        return None
    if user.args[0] is node:
        return _Product(Rows(user), rows_of(_argument(user, 1)), swapped, factor)
    return _Product(Rows(user, swapped=True), rows_of(_argument(user, 0), swapped=True), not swapped, factor)


def _product_behind(node: fx.Node, dropped: Dropped | None) -> fx.Node | None:
    """The product that a node is but for views and conversions of type, and for what weights are multiplied by."""
    while node.op == "call_function":
        if node.target is aten._to_copy.default or keeps_rows(node):
            node = _argument(node, 0)
        elif dropped is not None and (found := dropped_by(node)) is not None and found[1].is_as(dropped):
            node, dropped = found[0], None
        else:
            break
    return node if dropped is None and graphs.is_call(node, aten.bmm.default) else None


def summed(rows: Rows, repeat: int) -> Rows | None:
    """The sum of the gradients of heads that are ``repeat`` times the same one, which is all that is made of them."""
    while repeat > 1:
        if len(rows.node.users) != 1:
            return None
        (user,) = rows.node.users
        if graphs.is_call(user, aten.sum.dim_IntList):
            shape = graphs.type_of(rows.node).shape
            dims = [dim % len(shape) for dim in graphs.bound(user)["dim"]]
            is_of_heads = dims == [len(shape) - 3] and shape[dims[0]] == repeat
            return dataclasses.replace(rows, node=user) if is_of_heads else None
        if swaps_rows(user):
            rows = dataclasses.replace(rows, node=user, swapped=not rows.swapped)
        elif user.op == "call_function" and keeps_rows(user):
            rows = dataclasses.replace(rows, node=user)
        else:
            return None
    return rows
