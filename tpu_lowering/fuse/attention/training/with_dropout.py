"""Attention whose weights are dropped, with its gradients: two operators, which have a kernel each.

Before::

    dropped = aten.mul(aten._softmax(scale * bmm(query, keyᵀ) + mask, -1, False), aten.div(kept, 0.9))
    out = aten.bmm(dropped, value)
    d_value = aten.bmm(droppedᵀ, d_out)
    d_scores = aten._softmax_backward_data(bmm(d_out, valueᵀ) * aten.div(kept, 0.9), weights, -1, f32) * scale
    d_query, d_keyᵀ = aten.bmm(d_scores, key), aten.bmm(queryᵀ, d_scores)

After::

    out = dropped_attention(query, key, value, kept, mask, scale, 1 / 0.9, False, False)
    d_query, d_key, d_value = dropped_attention_gradients(d_out, query, key, value, kept, mask, ...)

``scaled_dot_product_attention`` that drops is computed in float32 and with factors of its operands. Where all of these
are bfloat16 before that, and all results are made so after it, the operators take and give those.
"""

from __future__ import annotations

import dataclasses
import math
import operator

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.dropout.operators import by_heads, like, result_of
from tpu_lowering.fuse.attention.dropout.plans import DroppedPlan, heads_of, plan_of
from tpu_lowering.fuse.attention.masks import Known
from tpu_lowering.fuse.attention.operands import Rows, factor_of, keeps_rows, rows_of, swaps_rows
from tpu_lowering.fuse.attention.sites import Attention, narrow_rows, narrowed
from tpu_lowering.fuse.attention.training.gradients import Training, summed
from tpu_lowering.fuse.attention.training.insertion import inserting_for
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.dropped_attention import dropped_attention_gradients
from tpu_lowering.ir.types import bf16

aten = compat.aten


def call_operators(graph: fx.Graph, training: Training, chip: Chip, known: Known) -> dict[fx.Node, Action]:
    """Rewrites an attention in place if it becomes kernels both ways; else gives why it stays, by its result."""
    found = _narrowed(training) or _unscaled(training)
    plan = plan_of(found.forward, True, chip, known)
    if not isinstance(plan, DroppedPlan):
        return {training.forward.node: plan}
    _rewrite(graph, found, plan, known)
    return {}


def _rewrite(graph: fx.Graph, training: Training, plan: DroppedPlan, known: Known) -> None:
    """Puts the operators in, and their results in the place of what they replace."""
    site = training.forward
    assert site.written is not None
    with inserting_for(site.written.result):
        result, given = result_of(graph, site, plan.dropped, known)
        replaced = [(site.node, like(graph, result, Rows(site.node)))]
    with inserting_for(training.anchor):
        gradient = by_heads(graph, training.given, heads_of(site))
        backward = graphs.call(graph, dropped_attention_gradients, gradient, *given)
        for at, rows in enumerate(training.gradients):
            if rows is not None:
                found = graphs.call(graph, operator.getitem, backward, at)
                replaced.append((rows.node, like(graph, found, rows)))
    for old, new in replaced:
        graphs.replace(old, new)


def _narrowed(training: Training) -> Training | None:
    """The same of operands and results of bfloat16, if all are; None if one is not."""
    site = training.forward
    forward, given = narrowed(_seen_through(site)), narrow_rows(training.given)
    if forward.node is site.node or given is None or given.repeat > 1:
        return None
    return _with_gradients(training, dataclasses.replace(forward, outputs=(forward.node,) * 2), given, is_narrow=True)


def _unscaled(training: Training) -> Training:
    """The same of operands before they are multiplied by numbers, if the gradients are, too."""
    return _with_gradients(training, _seen_through(training.forward), training.given, is_narrow=False) or training


def _seen_through(site: Attention) -> Attention:
    """An attention of queries and keys before they are multiplied by numbers."""
    query, key = (_behind(rows) for rows in (site.query, site.key))
    scale = site.scale * query.factor * key.factor
    query, key = (dataclasses.replace(rows, factor=1.0) for rows in (query, key))
    return dataclasses.replace(site, query=query, key=key, scale=scale)


def _behind(rows: Rows) -> Rows:
    found = rows_of(rows.node, rows.swapped, factors=True)
    return rows if found.repeat > 1 else dataclasses.replace(found, repeat=rows.repeat)


def _with_gradients(training: Training, forward: Attention, given: Rows, is_narrow: bool) -> Training | None:
    """An attention of operands that are behind those of another, with the gradients of these; None if one of them is
    not made of those of the other alone."""
    factors = (_behind(training.forward.query).factor, _behind(training.forward.key).factor, 1.0)
    shared = forward.key.repeat // training.forward.key.repeat
    found: list[Rows | None] = []
    for rows, factor, repeat in zip(training.gradients, factors, (1, shared, shared), strict=True):
        below = None if rows is None else _below(rows, factor, is_narrow)
        below = None if below is None else summed(below, repeat)
        if rows is not None and below is None:
            return None
        found.append(below)
    return dataclasses.replace(training, forward=forward, given=given, gradients=tuple(found))


def _below(rows: Rows, factor: float, is_narrow: bool) -> Rows | None:
    """What a gradient is once it is multiplied by a number and, if it ``is_narrow``, made bfloat16; None if it is used
    otherwise, too."""
    by = 1.0
    while True:
        is_done = math.isclose(by, factor, rel_tol=1e-6)
        if graphs.type_of(rows.node).element == bf16 if is_narrow else is_done:
            return rows if is_done else None
        if len(rows.node.users) != 1:
            return None
        (user,) = rows.node.users
        if user.op != "call_function":
            return None
        if swaps_rows(user):
            rows = dataclasses.replace(rows, swapped=not rows.swapped)
        elif (times := factor_of(user)) is not None:
            by *= times
        elif not (keeps_rows(user) or (is_narrow and user.target is aten._to_copy.default)):
            return None
        rows = dataclasses.replace(rows, node=user)
