"""Attention that code writes out, with its gradients: two calls of the operators that have kernels.

Before, in a graph that holds both, such as AOTAutograd's joint graph::

    weights = aten._softmax(scale * bmm(query, keyᵀ) + mask, -1, False)
    out = aten.bmm(weights, value)
    d_value = aten.bmm(weightsᵀ, d_out)
    d_scores = aten._softmax_backward_data(bmm(d_out, valueᵀ), weights, -1, f32) * scale
    d_query, d_keyᵀ = aten.bmm(d_scores, key), aten.bmm(queryᵀ, d_scores)

After::

    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, ...)
    d_query, d_key, d_value = aten._scaled_dot_product_flash_attention_for_cpu_backward(d_out, ..., out, logsumexp, ...)

It has to be done before forward and backward are parted: after that the weights are a result of the one and an input of
the other. Values are replaced by equal values, so nothing else that the graph computes changes. Keys that heads share
(``repeat_kv``) stay shared: what is replaced is the sum of their gradients.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.added_masks import added_mask, unknown
from tpu_lowering.fuse.attention.masks import Known
from tpu_lowering.fuse.attention.operands import Rows
from tpu_lowering.fuse.attention.plans import AttentionPlan, plan_of
from tpu_lowering.fuse.attention.sites import BACKWARD, FORWARD, Attention, find
from tpu_lowering.fuse.attention.training import with_dropout
from tpu_lowering.fuse.attention.training.gradients import Training, training_of
from tpu_lowering.fuse.attention.training.insertion import inserting_for
from tpu_lowering.fuse.attention.training.share_heads import share_heads
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip

aten = compat.aten


def call_operators(graph: fx.Graph, chip: Chip, known: Known) -> dict[fx.Node, Action]:
    """Rewrites what becomes kernels both ways, in place.

    Args:
        graph: one with numbers as sizes, normalised or from AOTAutograd.
        chip: what it is for.
        known: as for ``attention.masks.split``.

    Returns:
        For the result of each attention that stays as it is though its gradients were found, why.
    """
    kept: dict[fx.Node, Action] = {}
    replaced: dict[fx.Node, fx.Node] = {}
    unused = {node for node in graph.nodes if not node.users}
    for training in [found for site in find(graph) if (found := training_of(site, known)) is not None]:
        if training.dropped is not None:
            kept |= with_dropout.call_operators(graph, training.moved(replaced), chip, known, replaced)
            continue
        plans = [plan_of(one, chip, known) for one in (training.forward, training.backward)]
        refused = next((plan for plan in plans if not isinstance(plan, AttentionPlan)), None)
        if refused is None:
            _rewrite(graph, training, known)
        else:
            kept[training.forward.node] = refused
    graphs.eliminate_dead_code(graph, unused.__contains__)  # else what follows takes weights for saved ones
    share_heads(graph)
    return kept


def _rewrite(graph: fx.Graph, training: Training, known: Known) -> None:
    """Puts the operators in, and their results in the place of what they replace."""
    site = training.forward
    heads = site.leading[-1] if site.leading[-1] % site.groups == 0 else site.query.heads
    width = max(site.key.width, site.value.width)  # the operator has one: zeros more change neither scores nor results
    with inserting_for(site.node):
        query = _wide(graph, _placed(graph, site.query, heads), width)
        key, value = (
            _wide(graph, _placed(graph, rows, heads // site.groups), width) for rows in (site.key, site.value)
        )
        is_causal, mask = added_mask(graph, site, known)
        given: dict[str, Any] = {"attn_mask": mask, "scale": site.scale}
        forward = graphs.call(graph, FORWARD, query, key, value, 0.0, is_causal, **given)
        result, logsumexp = (graphs.call(graph, operator.getitem, forward, at) for at in range(2))
        alive = _alive(graph, site, is_causal, mask, known)
        replaced = [(site.node, _like(graph, _or_nan(graph, result, alive), Rows(site.node)))]
    with inserting_for(training.anchor):
        gradient = _wide(graph, _or_nan(graph, _placed(graph, training.given, heads), alive), width)
        backward = graphs.call(
            graph, BACKWARD, gradient, query, key, value, result, logsumexp, 0.0, is_causal, **given
        )  # fmt: skip
        for at, rows in enumerate(training.gradients):
            if rows is not None:
                found = graphs.call(graph, operator.getitem, backward, at)
                replaced.append((rows.node, _like(graph, found, rows)))
    for old, new in replaced:
        graphs.replace(old, new)


def _placed(graph: fx.Graph, rows: Rows, heads: int) -> fx.Node:
    """Rows as [batch, heads, length, width]."""
    shape = [rows.heads // heads, heads, rows.length, rows.width]
    return graphs.call(graph, aten.reshape.default, rows.placed(graph), shape)


def _wide(graph: fx.Graph, node: fx.Node, width: int) -> fx.Node:
    """Rows of a width: with zeros at their ends, or without what is beyond it."""
    missing = width - graphs.type_of(node).shape[-1]
    return graphs.call(graph, aten.constant_pad_nd.default, node, [0, missing]) if missing else node


def _like(graph: fx.Graph, node: fx.Node, rows: Rows) -> fx.Node:
    """[batch, heads, length, width] as a node of other rows has them, of which there may be fewer columns."""
    node = _wide(graph, node, rows.width)
    if rows.swapped:
        node = graphs.call(graph, aten.permute.default, node, [0, 1, 3, 2])
    return graphs.call(graph, aten.reshape.default, node, list(graphs.type_of(rows.node).shape))


def _alive(graph: fx.Graph, site: Attention, is_causal: bool, mask: fx.Node | None, known: Known) -> fx.Node | None:
    """Which queries are left a key, [..., queries or 1, 1]; None if all are.

    Of a row of -inf a softmax is NaN, and so are the gradients of all that it is made of. The operator gives 0.
    """
    if mask is None or not any(term.may_exclude for term in unknown(site, known)):
        return None
    if is_causal:
        ones = graphs.call(graph, aten.ones.default, [site.query.length, site.key.length], dtype=torch.bool)
        below = graphs.call(graph, aten.tril.default, ones)
        mask = graphs.call(graph, aten.where.self, below, mask, _number(graph, -math.inf, mask))
    top = graphs.call(graph, aten.amax.default, mask, [-1], True)
    return graphs.call(graph, aten.gt.Scalar, top, -math.inf)


def _or_nan(graph: fx.Graph, rows: fx.Node, alive: fx.Node | None) -> fx.Node:
    return rows if alive is None else graphs.call(graph, aten.where.self, alive, rows, _number(graph, math.nan, rows))


def _number(graph: fx.Graph, value: float, like: fx.Node) -> fx.Node:
    return graphs.call(graph, aten.full.default, [], value, dtype=graphs.type_of(like).element.torch)
