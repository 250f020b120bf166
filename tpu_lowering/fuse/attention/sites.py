"""Attention as it stands in a graph: softmax(scale * query @ keyᵀ + mask) @ value, and its gradients.

Three forms are found:

* ``aten._scaled_dot_product_flash_attention_for_cpu``, which is what ``scaled_dot_product_attention`` becomes;
* its backward operator;
* the operators of code that writes it out: ``bmm``, factors, masks (added, filled in, selected), ``_softmax`` or
  ``_safe_softmax``, ``bmm``, with views and conversions of type between them.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.masks import Term, number
from tpu_lowering.fuse.attention.operands import Rows, factor_of, keeps_rows, rows_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.types import bf16, f32

aten = compat.aten

FORWARD = aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
SOFTMAXES = {aten._softmax.default: math.nan, aten._safe_softmax.default: 0.0}
"""The softmax operators, and what they give for a row without any key."""


@dataclasses.dataclass(frozen=True)
class ExplicitAttention:
    """What an attention is made of that code writes out.

    Attributes:
        product: the ``bmm`` of queries and keys.
        scale: what it is multiplied by; the operands' own factors are in ``Attention.scale``, too.
        scores: a node of the scores that something else uses too; None if there is none.
        softmax: the weights.
        result: the ``bmm`` of weights and values.
    """

    product: fx.Node
    scale: float
    scores: fx.Node | None
    softmax: fx.Node
    result: fx.Node


@dataclasses.dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        query, key, value: its operands.
        leading: sizes before the last two of the scores that ``terms`` broadcast with.
        scale: what the products of queries and keys are multiplied by.
        soft_cap: the number that scores ``s`` are kept below, ``soft_cap * tanh(s / soft_cap)``; None if they are not.
        is_causal: whether query ``i`` sees the keys 0 to ``i`` alone.
        terms: what else is done to the scores.
        dropout: whether weights are dropped, or multiplied by anything else.
        dropped: the weights after that, if they are multiplied once.
        empty: the result for a query that sees no key.
        shared: a node of the scores or the weights that something else uses too; None if there is none.
        outputs: the nodes that it replaces: the result and, if used, the logsumexp; or the three gradients.
        given: of a gradient: that of the result, the result, and the logsumexp; else ().
        written: the operators it is made of; None if it is one operator.
    """

    query: Rows
    key: Rows
    value: Rows
    leading: tuple[int, ...]
    scale: float
    is_causal: bool
    terms: tuple[Term, ...]
    dropout: bool
    empty: float
    shared: fx.Node | None
    outputs: tuple[fx.Node | None, ...]
    given: tuple[fx.Node, ...] = ()
    written: ExplicitAttention | None = None
    dropped: fx.Node | None = None
    soft_cap: float | None = None

    @property
    def is_gradient(self) -> bool:
        return bool(self.given)

    @property
    def wants_logsumexp(self) -> bool:
        return not self.is_gradient and len(self.outputs) > 1 and self.outputs[1] is not None

    @property
    def node(self) -> fx.Node:
        """The node that actions are about."""
        return next(node for node in self.outputs if node is not None)

    def moved(self, replaced: Mapping[fx.Node, fx.Node]) -> Attention:
        """The same attention, of nodes that stand in for some of its operands."""

        def now(node: fx.Node) -> fx.Node:
            return replaced.get(node, node)

        return dataclasses.replace(
            self,
            query=dataclasses.replace(self.query, node=now(self.query.node)),
            key=dataclasses.replace(self.key, node=now(self.key.node)),
            value=dataclasses.replace(self.value, node=now(self.value.node)),
            terms=tuple(dataclasses.replace(term, node=now(term.node)) for term in self.terms),
            given=tuple(map(now, self.given)),
        )

    @property
    def groups(self) -> int:
        """How many heads of the queries share one head of the keys."""
        return self.query.heads // self.key.heads


def find(graph: fx.Graph) -> list[Attention]:
    """Every attention of a graph, in order."""
    found = [_of_node(node) for node in graph.nodes if node.op == "call_function"]
    return [site for site in found if site is not None]


def _of_node(node: fx.Node) -> Attention | None:
    if node.target is FORWARD:
        return _of_operator(node)
    if node.target is BACKWARD:
        return _of_gradient(node)
    return _of_pattern(node) if node.target in (*SOFTMAXES, aten.div.Tensor) else None


def _of_operator(node: fx.Node) -> Attention | None:
    given = graphs.bound(node)
    return _fused(node, given, 2, ())


def _of_gradient(node: fx.Node) -> Attention | None:
    given = graphs.bound(node)
    return _fused(node, given, 3, (given["grad_out"], given["out"], given["logsumexp"]))


def _fused(node: fx.Node, given: dict[str, Any], results: int, others: tuple[fx.Node, ...]) -> Attention | None:
    outputs: list[fx.Node | None] = [None] * results
    for user in node.users:
        assert user.target is operator.getitem
        outputs[user.args[1]] = user  # type: ignore[index]
    if not any(outputs):
        return None
    operands = [given[name] for name in ("query", "key", "value")]
    # Gradients are wanted of the operands as they are, not of what is behind their views.
    query, key, value = [Rows(x) if others else rows_of(x) for x in operands]
    if query.repeat > 1 or key.repeat != value.repeat:
        query, key, value = (Rows(x) for x in operands)
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(query.width)
    terms = (Term(given["attn_mask"]),) if given["attn_mask"] is not None else ()
    leading = tuple(graphs.type_of(operands[0]).shape[:-2])
    return Attention(
        query=query,
        key=key,
        value=value,
        leading=leading,
        scale=scale,
        is_causal=given["is_causal"],
        terms=terms,
        dropout=given["dropout_p"] != 0,
        empty=0.0,
        shared=None,
        outputs=tuple(outputs),
        given=others,
    )


def narrowed(site: Attention) -> Attention:
    """An attention of bfloat16, where code that writes it out makes operands float32 before it and its result bfloat16
    again after it; the same attention otherwise. A kernel sums products of bfloat16, which are exact, in float32."""
    if site.written is None or graphs.type_of(site.node).element != f32:
        return site
    result = site.node
    while len(result.users) == 1 and keeps_rows(user := next(iter(result.users))):
        result = user
    users = list(result.users)
    if len(users) != 1 or not graphs.is_call(users[0], aten._to_copy.default):
        return site
    query, key, value = (narrow_rows(rows) for rows in (site.query, site.key, site.value))
    if graphs.type_of(users[0]).element != bf16 or query is None or key is None or value is None:
        return site
    if query.repeat > 1 or key.repeat != value.repeat:
        return site
    return dataclasses.replace(site, query=query, key=key, value=value, outputs=(users[0],))


def narrow_rows(rows: Rows) -> Rows | None:
    """Rows of bfloat16 that are made float32; None for others."""
    if not graphs.is_call(rows.node, aten._to_copy.default) or graphs.type_of(rows.node).element != f32:
        return None
    source: Any = rows.node.args[0]
    if graphs.type_of(source).element != bf16:
        return None
    behind = rows_of(source, rows.swapped)
    return Rows(source, rows.swapped, rows.repeat) if rows.repeat > 1 else behind


@dataclasses.dataclass(frozen=True)
class _Scores:
    """The way up from a softmax to the product of queries and keys.

    Attributes:
        product: the ``bmm``.
        scale, terms, leading: see ``Attention``.
        bound: what the hyperbolic tangent of the scaled products is multiplied by; None if none is taken.
        shared: a node on the way that is used elsewhere too; None if there is none.
    """

    product: fx.Node
    scale: float = 1.0
    terms: tuple[Term, ...] = ()
    leading: tuple[int, ...] | None = None
    shared: fx.Node | None = None
    bound: float | None = None


def _of_pattern(node: fx.Node) -> Attention | None:
    softmax, down = _softmax(node), _down(node)
    up = None if softmax is None or down is None else _up(softmax.source, softmax.users)
    if softmax is None or down is None or up is None:
        return None
    result, shared, multiplied = down
    given: Any = (*up.product.args, result.args[1])
    query_node, key_node, value_node = given
    query, key = rows_of(query_node, factors=True), rows_of(key_node, swapped=True, factors=True)
    scale = up.scale * query.factor * key.factor * (1.0 if up.bound is None else up.bound)
    query, key = (dataclasses.replace(rows, factor=1.0) for rows in (query, key))
    value = rows_of(value_node)
    if query.repeat > 1 or key.repeat != value.repeat:
        return None
    leading = up.leading if up.leading is not None else tuple(graphs.type_of(query_node).shape[:-2])
    return Attention(
        query=query,
        key=key,
        value=value,
        leading=leading,
        scale=scale,
        is_causal=False,
        terms=up.terms,
        dropout=bool(multiplied),
        dropped=multiplied[0] if len(multiplied) == 1 else None,
        empty=softmax.empty,
        shared=shared or up.shared,
        outputs=(result,),
        written=ExplicitAttention(up.product, up.scale, up.shared, node, result),
        soft_cap=up.bound,
    )


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """A softmax along rows.

    Attributes:
        source: what it is taken of.
        users: its own users of that.
        empty: what it gives for a row of -inf.
    """

    source: fx.Node
    users: frozenset[fx.Node]
    empty: float


def _softmax(node: fx.Node) -> _Softmax | None:
    """The softmax that a node is, or, for a division, the last operator of; None if it is none."""
    args: Any = node.args
    if node.target in SOFTMAXES:
        rank = len(graphs.type_of(args[0]).shape)
        along_rows = rank > 1 and args[1] % rank == rank - 1
        return _Softmax(args[0], frozenset((node,)), SOFTMAXES[node.target]) if along_rows else None  # type: ignore[index]
    exp, total = args[:2]
    if not (graphs.is_call(exp, aten.exp.default) and graphs.is_call(total, aten.sum.dim_IntList)):
        return None
    sub = exp.args[0]
    if total.args[0] is not exp or not _along_rows(total) or not graphs.is_call(sub, aten.sub.Tensor):
        return None
    source, top = sub.args[:2]
    if not graphs.is_call(top, aten.amax.default) or top.args[0] is not source or not _along_rows(top):
        return None
    return _Softmax(source, frozenset((sub, top)), math.nan)


def _along_rows(node: fx.Node) -> bool:
    """Whether a reduction is along the last dimension, which is kept."""
    given = graphs.bound(node)
    rank = len(graphs.type_of(given["self"]).shape)
    return bool(given["keepdim"]) and [dim % rank for dim in given["dim"]] == [rank - 1]


def _down(node: fx.Node) -> tuple[fx.Node, fx.Node | None, tuple[fx.Node, ...]] | None:
    """(the product with the values, a node of the weights that is used elsewhere, the weights each time that they are
    multiplied by a tensor)."""
    found: list[tuple[fx.Node, fx.Node | None, tuple[fx.Node, ...]]] = []
    for user in node.users:
        step = _weights_step(node, user)
        below = (user, None, ()) if step == "product" else _down(user) if step is not None else None
        if below is not None:
            result, shared, multiplied = below
            multiplied = (user, *multiplied) if step == "dropped" else multiplied
            found.append((result, node if len(node.users) > 1 else shared, multiplied))
    return found[0] if len(found) == 1 else None


def _weights_step(node: fx.Node, user: fx.Node) -> str | None:
    if user.op != "call_function" or not user.args:
        return None
    if user.target is aten.bmm.default:
        return "product" if user.args[0] is node and user.args[1] is not node else None
    if user.target is aten.mul.Tensor and all(isinstance(arg, fx.Node) for arg in user.args):
        return "dropped"
    if user.target is aten._to_copy.default or keeps_rows(user):
        return "same"
    return None


def _up(node: fx.Node, users: Collection[fx.Node]) -> _Scores | None:
    """From what a softmax is taken of to the product of queries and keys; ``users`` are those on the way."""
    if node.op != "call_function":
        return None
    found = _Scores(node) if node.target is aten.bmm.default else _up_step(node)
    if found is None:
        return None
    return dataclasses.replace(found, shared=node) if set(node.users) - set(users) else found


def _up_step(node: fx.Node) -> _Scores | None:
    args: Any = node.args
    if node.target is aten._to_copy.default or keeps_rows(node):
        return _up(args[0], (node,))
    if (factor := factor_of(node)) is not None:
        found = _up(args[0], (node,))
        if found is None or (found.terms and factor != 1):
            return None
        return _multiplied(found, factor)
    if node.target is aten.tanh.default:
        found = _up(args[0], (node,))
        is_plain = found is not None and not found.terms and found.bound is None
        return dataclasses.replace(found, bound=1.0) if is_plain else None  # type: ignore[type-var]
    for scores, term in _terms_of(node):
        found = _up(scores, (node,))
        leading = tuple(graphs.type_of(node).shape[:-2])
        if found is not None and graphs.type_of(scores).shape == graphs.type_of(node).shape:
            if found.leading not in (None, leading):
                return None
            return dataclasses.replace(found, terms=(*found.terms, term), leading=leading)
    return None


def _multiplied(scores: _Scores, factor: float) -> _Scores:
    if scores.bound is None:
        return dataclasses.replace(scores, scale=scores.scale * factor)
    return dataclasses.replace(scores, bound=scores.bound * factor)


def _terms_of(node: fx.Node) -> list[tuple[fx.Node, Term]]:
    """What a node may be: (scores, what it does to them)."""
    args: Any = node.args
    if node.target is aten.add.Tensor and not node.kwargs and all(isinstance(arg, fx.Node) for arg in args):
        return [(args[0], Term(args[1])), (args[1], Term(args[0]))]
    if node.target is aten.masked_fill.Scalar:
        return [(args[0], Term(args[1], float(args[2])))]
    if node.target is aten.masked_fill.Tensor and (value := number(args[2])) is not None:
        return [(args[0], Term(args[1], value))]
    if node.target is aten.where.self:
        filled = [(1, 2, False), (2, 1, True)]
        return [
            (args[scores], Term(args[0], value, where))
            for scores, other, where in filled
            if (value := number(args[other])) is not None
        ]
    return []
