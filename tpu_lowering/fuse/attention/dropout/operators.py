"""Attention with dropped weights as one operator, in place of the operators that it is written in.

Before::

    weights = aten._softmax(scale * bmm(query, keyᵀ) + mask, -1, False)
    dropped = aten.mul(weights, aten.div(kept, 0.9))
    out = aten.bmm(dropped, value)

After::

    out = dropped_attention(query, key, value, kept, mask, 16, scale, 1 / 0.9, False, False)
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
    """The operator's result, [batch, queries, heads * width], at the insertion point; and what it is given."""
    heads = heads_of(site)
    shared = heads // site.groups
    query, key, value = (
        joined(graph, site.query, heads),
        *(joined(graph, one, shared) for one in (site.key, site.value)),
    )
    sizes = (site.query.heads // heads, heads, site.query.length, site.key.length)
    kept = graphs.reshaped(graph, graphs.converted(graph, dropped.kept, torch.int8), sizes)
    is_causal, mask = added_mask(graph, site, known)
    numbers = (shared, site.scale, dropped.factor, is_causal, not math.isnan(site.empty))
    given = (query, key, value, kept, mask, *numbers)
    return graphs.call(graph, dropped_attention, *given), given


def joined(graph: fx.Graph, rows: Rows, heads: int) -> fx.Node:
    """Rows as [batch, length, heads * width]."""
    batch = rows.heads // heads
    sizes = (rows.width, rows.length) if rows.swapped else (rows.length, rows.width)
    node = graphs.reshaped(graph, rows.node, (batch, heads, *sizes))
    return _moved(graph, node, (0, 3, 1, 2) if rows.swapped else (0, 2, 1, 3), (batch, rows.length, heads * rows.width))


def apart(graph: fx.Graph, node: fx.Node, rows: Rows) -> fx.Node:
    """[batch, length, heads * width] as the node of other rows has them, and in its layout."""
    batch, length, _ = graphs.type_of(node).shape
    node = graphs.reshaped(graph, node, (batch, length, rows.heads // batch, rows.width))
    order = (0, 2, 3, 1) if rows.swapped else (0, 2, 1, 3)
    made = _moved(graph, node, order, graphs.type_of(rows.node).shape)
    made.meta["val"] = rows.node.meta["val"]
    return made


def _moved(graph: fx.Graph, node: fx.Node, order: tuple[int, ...], shape: tuple[int, ...]) -> fx.Node:
    """A permuted node with other sizes: a copy, as AOTAutograd takes what is only reshaped for a view of it."""
    moved = graphs.permuted(graph, node, order)
    copied = graphs.call(graph, aten.clone.default, moved, memory_format=torch.contiguous_format)
    return graphs.reshaped(graph, copied, shape)
