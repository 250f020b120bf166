"""Attention with dropped weights as one operator, in place of the operators that it is written in.

Before::

    weights = aten._softmax(scale * bmm(query, keyᵀ) + mask, -1, False)
    dropped = aten.mul(weights, aten.div(kept, 0.9))
    out = aten.bmm(dropped, value)

After::

    out = dropped_attention(query, key, value, kept, mask, scale, 1 / 0.9, False, False)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.added_masks import added_mask
from tpu_lowering.fuse.attention.dropout.factors import Dropped
from tpu_lowering.fuse.attention.dropout.plans import heads_of
from tpu_lowering.fuse.attention.masks import Known
from tpu_lowering.fuse.attention.operands import Rows
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.ir import graphs
from tpu_lowering.ir.dropped_attention import dropped_attention

aten = compat.aten


def result_of(graph: fx.Graph, site: Attention, dropped: Dropped, known: Known) -> tuple[fx.Node, tuple[Any, ...]]:
    """The operator's result, [batch, heads, queries, width], at the insertion point; and what it is given."""
    heads = heads_of(site)
    query = by_heads(graph, site.query, heads)
    key, value = (by_heads(graph, rows, heads // site.groups) for rows in (site.key, site.value))
    sizes = (*graphs.type_of(query).shape[:3], site.key.length)
    kept = graphs.reshaped(graph, graphs.converted(graph, dropped.kept, torch.int8), sizes)
    is_causal, mask = added_mask(graph, site, known)
    numbers = (site.scale, dropped.factor, is_causal, not math.isnan(site.empty))
    given = (query, key, value, kept, mask, *numbers)
    return graphs.call(graph, dropped_attention, *given), given


def by_heads(graph: fx.Graph, rows: Rows, heads: int) -> fx.Node:
    """Rows as [batch, heads, length, width]."""
    return graphs.reshaped(graph, rows.placed(graph), (rows.heads // heads, heads, rows.length, rows.width))


def like(graph: fx.Graph, node: fx.Node, rows: Rows) -> fx.Node:
    """[batch, heads, length, width] as a node of other rows has them."""
    if rows.swapped:
        node = graphs.permuted(graph, node, (0, 1, 3, 2))
    return graphs.reshaped(graph, node, graphs.type_of(rows.node).shape)
