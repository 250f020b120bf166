"""Classes of operators that analyses and passes speak of."""

from __future__ import annotations

from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir.boxes import read_box

aten = compat.aten

ALLOCATIONS: frozenset[Any] = frozenset((
    aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default,
    aten.empty_strided.default, aten.new_empty_strided.default, aten.empty_permuted.default,
))  # fmt: skip

FILLS: frozenset[Any] = frozenset((
    aten.full.default, aten.full_like.default, aten.zeros.default, aten.zeros_like.default, aten.ones.default,
    aten.ones_like.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
))  # fmt: skip

GATHERS: frozenset[Any] = frozenset((aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_select.default))

SCATTERS: frozenset[Any] = frozenset((aten.index_put.default, aten._unsafe_index_put.default))

# Operators that only move or convert elements: of undefined elements they make undefined elements.
MOVES: frozenset[Any] = frozenset((
    read_box, aten.reshape.default, aten.permute.default, aten.expand.default, aten.clone.default,
    aten.alias.default, aten.detach.default, aten.view.dtype, aten._to_copy.default, aten.flip.default,
    aten.as_strided.default, aten.lift_fresh_copy.default,
))  # fmt: skip


def is_allocation(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in ALLOCATIONS


def makes_memory(node: Any) -> bool:
    """Whether a node is an allocation or a fill; ``passes.drop_dead_allocations`` removes and reports them."""
    return is_allocation(node) or is_fill(node)


def is_fill(node: Any) -> bool:
    """Whether a node makes a value of equal elements, without reading any tensor's contents."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in FILLS
