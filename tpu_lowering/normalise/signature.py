"""The edge of a captured graph: results with eager's strides, and mutated inputs as results.

AOTAutograd ends a graph that mutates inputs with ``copy_(placeholder, value)`` nodes. They become further
results of the graph, and the caller of the program writes them back; nothing in the graph is mutable then.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir.programs import MemoryView, Output, Signature

aten = compat.aten


def separate_signature(graph: fx.Graph, shares_memory: bool = False) -> Signature:
    """Takes the ``copy_`` epilogue and results that the program does not compute out of a graph, in place.

    Args:
        graph: a specialised graph.
        shares_memory: results that share memory in eager do so too; AOTAutograd takes care of it only
            where gradients are recorded.

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
    returned = len(results)
    if shares_memory:
        results = [*results, *_hidden_bases(results)]
    outputs = tuple(_describe(at, results, shares_memory) for at in range(len(results)))
    tensors = [result for result, spec in zip(results, outputs, strict=True) if spec.is_computed]
    output.args = ((*tensors, *final.values()),)
    return Signature(outputs, returned, tuple(placeholders.index(target) for target in final))


def written_back(graph: fx.Graph) -> tuple[int, ...]:
    """Positions of the arguments that a captured graph mutates."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    writes = [node for node in graph.nodes if node.op == "call_function" and node.target is aten.copy_.default]
    return tuple(sorted({placeholders.index(node.args[0]) for node in writes}))


def _base(node: Any) -> fx.Node | None:
    """The value that a result is a view of in eager, itself if it is no view; None if it is no such tensor."""
    memory = node.meta.get("memory") if isinstance(node, fx.Node) else None
    if memory is None or node.meta["val"].numel() == 0:
        return None
    while (source := _viewed(node)) is not None and source.meta.get("memory") == memory:
        node = source
    value = node.meta["val"]
    is_whole = value.storage_offset() == 0 and aten.is_non_overlapping_and_dense(value)
    return node if node.op == "call_function" and is_whole else None


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node that a node is a view of, if it is one: its first argument, through the tuple of a ``split``."""
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) else None


def _hidden_bases(results: Sequence[Any]) -> list[fx.Node]:
    """Bases of several results each, none of which is the base."""
    bases = [_base(result) for result in results]
    several = {base: None for base in bases if base is not None and bases.count(base) > 1}
    return [base for base in several if base not in results]


def _as_written(graph: fx.Graph, node: fx.Node, target: fx.Node, value: fx.Node) -> fx.Node:
    """The value as ``copy_`` leaves it in the target: broadcast to its shape, in its dtype."""
    have, want = value.meta["val"], target.meta["val"]
    if have.shape == want.shape and have.dtype == want.dtype:
        return value
    with graph.inserting_before(node):
        new = graph.call_function(aten.copy.default, (target, value))
    new.meta = dict(node.meta)
    return new


def _describe(at: int, results: Sequence[Any], shares_memory: bool) -> Output:
    result = results[at]
    if not isinstance(result, fx.Node) or not isinstance(result.meta.get("val"), torch.Tensor):
        return Output(None, constant=result.meta.get("val") if isinstance(result, fx.Node) else result)
    value, base = result.meta["val"], _base(result) if shares_memory else None
    if base is None or base not in results or results.index(base) == at:
        return Output.of(value)
    place = MemoryView(results.index(base), tuple(value.shape), value.storage_offset(), value.dtype)
    return Output.of(value, place)
