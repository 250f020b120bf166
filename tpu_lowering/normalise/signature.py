"""The edge of a captured graph: results with eager's strides, and mutated inputs as results.

AOTAutograd ends a graph that mutates inputs with ``copy_(placeholder, value)`` nodes. They become further
results of the graph, and the caller of the program writes them back; nothing in the graph is mutable then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpu_lowering.ir.programs import Output, Signature

aten = torch.ops.aten


def separate_signature(graph: fx.Graph) -> Signature:
    """Takes the ``copy_`` epilogue and results that are no tensors out of a graph, in place.

    Returns:
        The signature; the graph's output is then one flat tuple of tensors: results, then mutated values.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    final: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.copy_.default:
            target, value = node.args[:2]
            final[target] = _as_written(graph, node, target, value)
            node.replace_all_uses_with(final[target])
            graph.erase_node(node)
    output = graph.output_node()
    results: Any = output.args[0]
    outputs = tuple(_describe(result) for result in results)
    tensors = [result for result, spec in zip(results, outputs, strict=True) if spec.stride is not None]
    output.args = ((*tensors, *final.values()),)
    return Signature(outputs, tuple(placeholders.index(target) for target in final))


def _as_written(graph: fx.Graph, node: fx.Node, target: fx.Node, value: fx.Node) -> fx.Node:
    """The value as ``copy_`` leaves it in the target: broadcast to its shape, in its dtype."""
    have, want = value.meta["val"], target.meta["val"]
    if have.shape == want.shape and have.dtype == want.dtype:
        return value
    with graph.inserting_before(node):
        new = graph.call_function(aten.copy.default, (target, value))
    new.meta = dict(node.meta)
    return new


def _describe(result: Any) -> Output:
    if not isinstance(result, fx.Node) or not isinstance(result.meta.get("val"), torch.Tensor):
        return Output(None, result.meta.get("val") if isinstance(result, fx.Node) else result)
    return Output(tuple(result.meta["val"].stride()))
