"""Memory whose old contents do not matter, in graphs that were not normalised: views are ATen's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.operators import MOVES, is_allocation, is_fill, makes_memory

aten = compat.aten


def source_of(node: fx.Node) -> fx.Node | None:
    """The node whose elements a node only moves: views, copies, conversions; or None."""
    source = node.args[0] if node.args else None
    if not isinstance(node.target, compat.OpOverload) or not isinstance(source, fx.Node):
        return None
    return source if node.target in MOVES or _is_view(node.target) else None


def _is_view(overload: compat.OpOverload) -> bool:
    """Whether an operator's one result is a view of its first argument."""
    schema = compat.schema(overload)
    aliases = [result.alias_info for result in schema.returns]
    return len(aliases) == 1 and aliases[0] is not None and not aliases[0].is_write


def origin(node: fx.Node) -> fx.Node:
    """The node whose elements a chain of views and copies hands on."""
    while (source := source_of(node)) is not None:
        node = source
    return node


@dataclasses.dataclass(frozen=True)
class Memory:
    """A piece of memory to allocate.

    Attributes:
        size: sizes: numbers, or nodes of symbols.
        stride: strides in elements; None for row-major.
        dtype: element type.
        device: where.
    """

    size: tuple[Any, ...]
    stride: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device


def memory_of(graph: fx.Graph, node: fx.Node) -> Memory | None:
    """Memory like that of a node's tensor; None if it is not described without the node.

    Nodes for sizes that are symbols go where the graph inserts.
    """
    value = node.meta["val"]
    if value.storage_offset() != 0 or value.layout is not torch.strided:
        return None
    is_row_major = _is_row_major(value.shape, value.stride())
    stride = None if is_row_major else tuple(value.stride())
    if all(type(number) is int for number in (*value.shape, *(stride or ()))):
        return Memory(tuple(value.shape), stride, value.dtype, value.device)
    if stride is not None or not makes_memory(node):
        return None
    bound = graphs.bound(node)
    if "size" in bound:
        return Memory(tuple(bound["size"]), None, value.dtype, value.device)
    like = bound["self"]
    sizes = [
        size if type(size) is int else graphs.call(graph, aten.sym_size.int, like, dim)
        for dim, size in enumerate(value.shape)
    ]
    return Memory(tuple(sizes), None, value.dtype, value.device)


def _is_row_major(shape: Sequence[Any], stride: Sequence[Any]) -> bool:
    """Whether strides are row-major; without a guard on sizes that are symbols, and False where that takes one."""
    if any(type(size) is int and size == 0 for size in shape):
        return False
    sizes = [sympy.sympify(_expression(size)) for size in shape]
    wanted = [math.prod(sizes[dim + 1 :], start=sympy.Integer(1)) for dim in range(len(sizes))]
    return all(sympy.expand(_expression(step) - want) == 0 for step, want in zip(stride, wanted, strict=True))


def _expression(number: Any) -> Any:
    return number.node.expr if isinstance(number, torch.SymInt) else number


def is_undefined(node: fx.Node, fills: bool) -> bool:
    """Whether all elements of a node's tensor are undefined; ``fills``: whether eager fills new memory."""
    return is_allocation(origin(node)) and not fills


def is_filled(node: fx.Node, fills: bool) -> bool:
    """Whether a node's tensor is a fill."""
    return is_fill(origin(node)) or (fills and is_allocation(origin(node)))


def erase_dead(nodes: Sequence[fx.Node]) -> None:
    """Erases nodes that nobody uses any more, and what they alone used, of allocations, fills, views and copies."""
    waiting = list(dict.fromkeys(nodes))
    while waiting:
        node = waiting.pop()
        if node.users or not (makes_memory(node) or source_of(node) is not None):
            continue
        waiting += node.all_input_nodes
        node.graph.erase_node(node)
        waiting = [other for other in waiting if other is not node]
