"""Attention whose weights are dropped, with its gradients: two operators, which have a kernel each.

Before::

    dropped = aten.mul(aten._softmax(scale * bmm(query, keyᵀ) + mask, -1, False), aten.div(kept, 0.9))
    out = aten.bmm(dropped, value)
    d_value = aten.bmm(droppedᵀ, d_out)
    d_scores = aten._softmax_backward_data(bmm(d_out, valueᵀ) * aten.div(kept, 0.9), weights, -1, f32) * scale
    d_query, d_keyᵀ = aten.bmm(d_scores, key), aten.bmm(queryᵀ, d_scores)

After::

    out = dropped_attention(query, key, value, kept, mask, 16, scale, 1 / 0.9, False, False)
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
from tpu_lowering.fuse.attention.dropout.operators import apart, joined, result_of
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


def call_operators(
    graph: fx.Graph, training: Training, chip: Chip, known: Known, replaced: dict[fx.Node, fx.Node]
) -> dict[fx.Node, Action]:
    """Rewrites an attention in place if it becomes kernels both ways; else gives why it stays, by its result.
    ``replaced`` gets what each node is now."""
    found = _narrowed(training) or _unscaled(training)
    plan = plan_of(found.forward, True, chip, known)
    if not isinstance(plan, DroppedPlan):
        return {training.forward.node: plan}
    for old, new in _rewritten(graph, found, plan, known):
        graphs.replace(old, new)
        replaced[old] = new
    return {}


def _rewritten(graph: fx.Graph, training: Training, plan: DroppedPlan, known: Known) -> list[tuple[fx.Node, fx.Node]]:
    """Puts the operators in; gives what is to be replaced, and by what."""
    site = training.forward
    assert site.written is not None
    with inserting_for(site.written.result):
        result, given = result_of(graph, site, plan.dropped, known)
        replaced = [(site.node, apart(graph, result, Rows(site.node)))]
    with inserting_for(training.anchor):
        gradient = joined(graph, training.given, heads_of(site))
        backward = graphs.call(graph, dropped_attention_gradients, gradient, *given)
        for at, rows in enumerate(training.gradients):
            if rows is not None:
                found = graphs.call(graph, operator.getitem, backward, at)
                replaced.append((rows.node, apart(graph, found, rows)))
    return replaced


def _narrowed(training: Training) -> Training | None:
    """The same of operands and results of bfloat16, if all are; None if one is not."""
    site, factors = _seen_through(training.forward)
    forward, given = narrowed(site), narrow_rows(training.given)
    if forward.node is site.node or given is None or given.repeat > 1:
        return None
    forward = dataclasses.replace(forward, outputs=(forward.node,) * 2)
    return _with_gradients(training, forward, factors, given, is_narrow=True)


def _unscaled(training: Training) -> Training:
    """The same of operands before they are multiplied by numbers, if the gradients are, too."""
    forward, factors = _seen_through(training.forward)
    return _with_gradients(training, forward, factors, training.given, is_narrow=False) or training


def _seen_through(site: Attention) -> tuple[Attention, tuple[float, float, float]]:
    """An attention of operands before they are repeated, and queries and keys before they are multiplied by numbers;
    and what each operand is multiplied by."""
    query, key = _behind(site.query, True), _behind(site.key, True)
    value = _behind(site.value, False)
    if query.repeat > 1 or key.repeat != value.repeat:
        return site, (1.0, 1.0, 1.0)
    factors = query.factor, key.factor, 1.0
    query, key = (dataclasses.replace(rows, factor=1.0) for rows in (query, key))
    scale = site.scale * math.prod(factors)
    return dataclasses.replace(site, query=query, key=key, value=value, scale=scale), factors


def _behind(rows: Rows, factors: bool) -> Rows:
    found = rows_of(rows.node, rows.swapped, factors)
    if rows.repeat == 1:
        return found
    return rows if found.repeat > 1 else dataclasses.replace(found, repeat=rows.repeat)


def _with_gradients(
    training: Training, forward: Attention, factors: tuple[float, float, float], given: Rows, is_narrow: bool
) -> Training | None:
    """An attention of operands that are behind those of another, with the gradients of these; None if one of them is
    not made of those of the other alone."""
    shared = forward.key.repeat // training.forward.key.repeat
    found: list[Rows | None] = []
    for rows, factor, repeat in zip(training.gradients, factors, (1, shared, shared), strict=True):
        below = None if rows is None else _below(rows, factor, repeat, is_narrow)
        if rows is not None and below is None:
            return None
        found.append(below)
    return dataclasses.replace(training, forward=forward, given=given, gradients=tuple(found))


def _below(rows: Rows, factor: float, repeat: int, is_narrow: bool) -> Rows | None:
    """What a gradient is once it is multiplied by a number, summed over ``repeat`` heads that share rows and, if it
    ``is_narrow``, made bfloat16; None if it is used otherwise, too."""
    while True:
        is_done = repeat == 1 and math.isclose(factor, 1.0, rel_tol=1e-6)
        if is_done and (not is_narrow or graphs.type_of(rows.node).element == bf16):
            return rows
        if len(rows.node.users) != 1:
            return None
        (user,) = rows.node.users
        if user.op != "call_function":
            return None
        if (by := factor_of(user)) is not None:
            rows, factor = dataclasses.replace(rows, node=user), factor / by
        elif swaps_rows(user):
            rows = dataclasses.replace(rows, node=user, swapped=not rows.swapped)
        elif keeps_rows(user) or (is_narrow and user.target is aten._to_copy.default):
            rows = dataclasses.replace(rows, node=user)
        elif repeat > 1 and (found := summed(rows, repeat)) is not None:
            rows, repeat = found, 1
        else:
            return None
