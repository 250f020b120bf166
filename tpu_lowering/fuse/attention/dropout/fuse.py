"""Operators of attention with dropped weights become calls of their kernels.

Before::

    out = dropped_attention(query, key, value, kept, None, 16, 0.125, 1.1, False, False)

After::

    k = kernel_call(dropped_attention, (query, key, value, kept))
    out = getitem(k, 0)
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from tpu_lowering.fuse.attention.dropout.calls import DroppedCall
from tpu_lowering.fuse.attention.dropout.kernels import dropped_gradient_kernel, dropped_kernel
from tpu_lowering.fuse.attention.dropout.operators import apart, result_of
from tpu_lowering.fuse.attention.dropout.plans import DroppedPlan, block_of, plan_of, refused
from tpu_lowering.fuse.attention.dropout.sizes import Sizes, vmem_bytes
from tpu_lowering.fuse.attention.masks import Known
from tpu_lowering.fuse.attention.operands import Rows
from tpu_lowering.fuse.attention.sites import Attention, narrowed
from tpu_lowering.fuse.xla.vmem_limits import asked
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.dropped_attention import dropped_attention, dropped_attention_gradients
from tpu_lowering.ir.kernels import kernel_call


def call_operators(
    graph: fx.Graph, sites: Sequence[Attention], chip: Chip, known: Known
) -> tuple[list[Action], dict[fx.Node, fx.Node]]:
    """Puts operators in the place of attentions without gradients that become kernels.

    Returns:
        (why the others stay, for each operator the result whose place it takes).
    """
    kept: list[Action] = []
    origins: dict[fx.Node, fx.Node] = {}
    replaced: dict[fx.Node, fx.Node] = {}
    for site in sites:
        plan = plan_of(narrowed(site.moved(replaced)), False, chip, known)
        if not isinstance(plan, DroppedPlan):
            kept.append(plan)
            continue
        node = plan.site.node
        with graphs.inserting_for(node):
            result, _ = result_of(graph, plan.site, plan.dropped, known)
            new = apart(graph, result, Rows(node))
        graphs.replace(node, new)
        replaced[node] = new
        origins[result] = node
    return kept, origins


def fuse(graph: fx.Graph, chip: Chip, origins: Mapping[fx.Node, fx.Node]) -> list[Action]:
    """Makes kernels of the operators, in place; ``origins`` has what some took the place of."""
    targets = (dropped_attention, dropped_attention_gradients)
    found = [node for node in graph.nodes if node.target in targets and node.users]
    return [_fused(graph, node, chip, origins.get(node, node)) for node in found]


def _fused(graph: fx.Graph, node: fx.Node, chip: Chip, origin: fx.Node) -> Action:
    is_gradient = node.target is dropped_attention_gradients
    given: Any = node.args
    results = list(node.users) if is_gradient else [node]
    subject = results[0] if is_gradient else origin
    sizes = _sizes(given[-10:-5], given[-5])
    block = block_of(sizes, is_gradient, chip)
    if block is None:
        return Action.on("unfused", subject, refused(sizes, is_gradient, chip), "TL521")
    scale, factor, is_causal, is_safe = given[-4:]
    vmem = asked(vmem_bytes(sizes, block, is_gradient), chip)
    element, where = graphs.type_of(given[0]).element, graphs.source_line(node)
    call = DroppedCall(sizes, block, element, scale, factor, is_causal, is_safe, vmem, where, chip)
    kernel = (dropped_gradient_kernel if is_gradient else dropped_kernel)(call)
    text = f"attention with dropped weights is the kernel {kernel.name}, blocks of {block.queries} queries"
    action = Action.on("fused", subject, text)
    with graphs.inserting_for(node):
        rows = [_as_rows(graph, one, call) for one in given[: 4 if is_gradient else 3]]
        operands = (*rows, *(one for one in given[-7:-5] if one is not None))
        called = graphs.call(graph, kernel_call, kernel, operands)
        made: list[tuple[fx.Node, fx.Node]] = []
        for old in results:
            at: Any = old.args[1] if is_gradient else 0
            new = graphs.call(graph, operator.getitem, called, at)
            made.append((old, _from_rows(graph, new, graphs.type_of(old).shape, call)))
    for old, new in made:
        graphs.replace(old, new)
    if is_gradient:
        graph.erase_node(node)
    return action


def _sizes(given: tuple[fx.Node | None, ...], shared: int) -> Sizes:
    query, key, value, kept, mask = (None if one is None else graphs.type_of(one) for one in given)
    assert query is not None and key is not None and value is not None and kept is not None
    batch, heads, queries, keys = kept.shape
    widths = (query.shape[2] // heads, value.shape[2] // shared)
    added = None if mask is None else mask.shape
    return Sizes(batch, heads, shared, queries, keys, *widths, query.element.numpy.itemsize, added)  # type: ignore[arg-type]


def _as_rows(graph: fx.Graph, node: fx.Node, call: DroppedCall) -> fx.Node:
    """[batch, length, heads * width] as the kernels take it."""
    shared = call.sizes.shared
    if not call.block.is_apart or shared == 1:
        return node
    batch, length, columns = graphs.type_of(node).shape
    node = graphs.reshaped(graph, node, (batch, length, shared, columns // shared))
    node = graphs.permuted(graph, node, (0, 2, 1, 3))
    return graphs.reshaped(graph, node, (batch * shared, length, columns // shared))


def _from_rows(graph: fx.Graph, node: fx.Node, shape: tuple[int, ...], call: DroppedCall) -> fx.Node:
    """What the kernels give as [batch, length, heads * width]."""
    shared, (batch, length, columns) = call.sizes.shared, shape
    if not call.block.is_apart or shared == 1:
        return node
    node = graphs.reshaped(graph, node, (batch, shared, length, columns // shared))
    node = graphs.permuted(graph, node, (0, 2, 1, 3))
    return graphs.reshaped(graph, node, shape)
