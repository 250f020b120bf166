"""What an attention adds to its scores, as one tensor of a graph."""

from __future__ import annotations

import functools

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.masks import Known, Term, parts, split
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.ir import graphs

aten = compat.aten


def added_mask(graph: fx.Graph, site: Attention, known: Known) -> tuple[bool, fx.Node | None]:
    """(whether the mask is causal, what else is added to the scores)."""
    mask, rest = split(site.terms, False, site.query.length, site.key.length, site.groups, known)
    is_causal = mask is not None and mask.is_causal
    terms = rest if is_causal else site.terms
    added = [_added(graph, term) for term in terms]
    if not added:
        return is_causal, None
    return is_causal, functools.reduce(lambda one, other: graphs.call(graph, aten.add.Tensor, one, other), added)


def unknown(site: Attention, known: Known) -> tuple[Term, ...]:
    """The terms of an attention that depend on an input."""
    given = tuple(part for term in site.terms for part in parts(term))
    return split(given, site.is_causal, site.query.length, site.key.length, site.groups, known)[1]


def _added(graph: fx.Graph, term: Term) -> fx.Node:
    """What a term adds to the scores: float32, of four dimensions."""
    node, shape = term.node, list(graphs.type_of(term.node).shape)
    if term.value is not None:
        hidden = node if term.where else graphs.call(graph, aten.bitwise_not.default, node)
        zeros = graphs.call(graph, aten.full.default, shape, 0.0, dtype=torch.float32)
        node = graphs.call(graph, aten.masked_fill.Scalar, zeros, hidden, term.value)
    elif graphs.type_of(node).element.torch != torch.float32:
        node = graphs.call(graph, aten._to_copy.default, node, dtype=torch.float32)
    return graphs.call(graph, aten.reshape.default, node, ([1] * 4 + shape)[-4:])
