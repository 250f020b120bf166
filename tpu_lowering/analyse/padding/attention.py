"""Rules for padding, of attention: undefined keys get no weight, undefined queries no gradient."""

from __future__ import annotations

from typing import Any

from tpu_lowering import compat
from tpu_lowering.analyse.padding.calls import HideKeys, OperatorCall, rule
from tpu_lowering.analyse.padding.layouts import Inexact, Layout, PaddedDim

aten = compat.aten


@rule(aten._scaled_dot_product_flash_attention_for_cpu.default)
def attention(call: OperatorCall) -> Any:
    """[b, h, q, d] by [b, h, k, d]."""
    head, queries, _, depth = _operands(call)
    return (*head, queries, depth), (*head, queries)


@rule(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def attention_backward(call: OperatorCall) -> Any:
    """Gradients of keys and values sum over the queries, those of queries over the keys."""
    head, queries, keys, depth = _operands(call)
    given = (call.layout(name)[:3] for name in ("grad_out", "out", "logsumexp"))
    rows = call.sizes.broadcast([(*head, queries), *given], 3)
    for name in ("grad_out", "query", "out", "logsumexp"):
        call.mask(name, rows, [2], 0)
    return (*rows, depth), (*rows[:2], keys, depth), (*rows[:2], keys, depth)


def _operands(call: OperatorCall) -> tuple[Layout, PaddedDim, PaddedDim, PaddedDim]:
    """Layouts of [b, h], q, k and d; undefined keys and values become 0 and are masked.

    Raises:
        Inexact: the head dimension is padded, dropout is on, or queries meet other keys under ``is_causal``.
    """
    query, key, value = (call.layout(name) for name in ("query", "key", "value"))
    for layout in (query, key, value):
        call.fixed(layout, [3])
    if call.arguments["dropout_p"]:
        raise Inexact("expected attention without dropout, got one with")
    sizes = call.sizes
    head = sizes.broadcast([query[:2], key[:2], value[:2]], 2)
    keys = sizes.unify(key[2], value[2])
    layout = (*head, keys)
    queries = query[2]
    if call.arguments["is_causal"] and (sizes.padded(queries) or sizes.padded(keys)):
        queries = keys = call.plain(sizes.unify(queries, keys))
        layout = (*head, keys)
    for name in ("key", "value"):
        call.mask(name, layout, [2], 0)
    mask = call.arguments["attn_mask"]
    if mask is not None:
        queries, keys = _masked(call, (*head, queries, keys))
    elif sizes.padded(keys) and not call.arguments["is_causal"]:
        call.edits.append(HideKeys(sizes.factors(keys)))
    return head, queries, keys, query[3]


def _masked(call: OperatorCall, scores: Layout) -> Layout:
    """The layout of queries and keys with a mask, which becomes -inf (False) for undefined keys.

    Raises:
        Inexact: the mask has one element for all keys.
    """
    mask = call.layout("attn_mask")
    joined = call.sizes.broadcast([scores, mask], 4)
    padded = call.sizes.padded(joined[3])
    if padded and mask[-1].size == 1:
        raise Inexact("expected a mask with an element for every key, got one for all", [joined[3].size])
    own = joined[len(joined) - len(mask) :]
    if mask[-2].size != 1:
        call.mask("attn_mask", own, [len(mask) - 2], 0)
    call.mask("attn_mask", own, [len(mask) - 1], "lowest")
    return joined[2:]
