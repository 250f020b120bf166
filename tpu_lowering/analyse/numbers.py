"""Which numbers that a graph is given no shape needs: they are inputs of its program, which then serves all of them.

``f(x, t)`` with an int ``t`` is captured once for all ``t``. If no size, stride or place of a result depends on ``t``,
and each operator that takes it has a form that takes a tensor instead, one program computes with whatever ``t`` a call
brings. What is not understood needs the number, and is compiled for it.

==========================================  ====================================================
``mul(x, t)``, ``lt(x, t)``, ``full([4], t)``  the number as a tensor of no dimensions
``iota(4, start=t)``                          ``iota(4) + t``
``select(x, 1, t)``, ``slice(x, 0, t, t + 4)``  ``index_select``
``select_scatter``, ``slice_scatter``           ``index_copy``, or a selection by place
==========================================  ====================================================
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse.padding.calls import (
    Edit,
    Element,
    Number,
    Shift,
    SliceWindow,
    WindowPut,
    WritePosition,
    expression,
    is_number,
)
from tpu_lowering.analyse.padding.elementwise_and_rows import TENSOR_FORMS, TENSOR_SLOTS
from tpu_lowering.analyse.padding.roundable_sizes import Padding
from tpu_lowering.ir import graphs
from tpu_lowering.ir.mesh import coordinates_of

aten = compat.aten
iota = compat.prims.iota.default
ARANGE = aten.arange.start_step
FILLS: dict[Any, str] = {aten.full.default: "fill_value", aten.scalar_tensor.default: "s"}
BY_OFFSET = (aten.as_strided.default, aten.as_strided_scatter.default, aten.as_strided_copy.default)
Symbols = frozenset[sympy.Symbol]


def numbers_of(graph: fx.Graph) -> tuple[Symbols, Padding]:
    """The symbols of numbers that no shape needs, and what takes them in."""
    candidates = _given(graph)
    while candidates:
        edits: dict[str, tuple[Edit, ...]] = {}
        needed: set[sympy.Symbol] = set()
        for node in graph.nodes:
            found = _edit(node, candidates)
            if isinstance(found, frozenset):
                needed |= found
            elif found:
                edits[node.name] = tuple(found)
        if not needed:
            return candidates, Padding(frozenset(), {}, edits, {}, ())
        candidates -= needed
    return frozenset(), Padding(frozenset(), {}, {}, {}, ())


def _given(graph: fx.Graph) -> Symbols:
    """Symbols that are arguments by themselves or places of a rank, and part of no tensor's layout."""
    numbers: set[sympy.Symbol] = set(coordinates_of(graph))
    sizes: set[sympy.Symbol] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                sizes |= _in_layout(value, offset=True)
            elif (found := expression(node)) is not None:
                numbers |= {found} if isinstance(found, sympy.Symbol) else set()
                sizes |= set() if isinstance(found, sympy.Symbol) else found.free_symbols
    return frozenset(numbers - sizes)


def _in_layout(tensor: torch.Tensor, offset: bool) -> set[sympy.Symbol]:
    parts = (*tensor.shape, *tensor.stride(), *([tensor.storage_offset()] if offset else []))
    return {symbol for part in parts if isinstance(part, torch.SymInt) for symbol in part.node.expr.free_symbols}


def _in_value(node: fx.Node, offset: bool) -> set[sympy.Symbol]:
    leaves = compat.tree_leaves(node.meta.get("val"))
    return {s for leaf in leaves if isinstance(leaf, torch.Tensor) for s in _in_layout(leaf, offset)}


def _held(value: Any) -> set[sympy.Symbol]:
    """Symbols in the numbers of an argument."""
    leaves = compat.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, fx.Node))
    found = [expression(leaf) for leaf in leaves]
    return {symbol for one in found if one is not None for symbol in one.free_symbols}


def _edit(node: fx.Node, candidates: Symbols) -> list[Edit] | Symbols:
    """What a node needs so that it takes numbers as inputs; or the symbols that it needs as numbers."""
    if node.op == "output":
        results: Any = node.args[0]
        placed = [_in_value(result, True) for result in results if isinstance(result, fx.Node)]
        return frozenset().union(*placed) & candidates
    if node.op != "call_function" or is_number(node) or node.target is operator.getitem:
        return []
    needed = _in_value(node, False) & candidates
    if node.target in BY_OFFSET or compat.schema(node.target) is None:
        needed |= {symbol for used in node.all_input_nodes for symbol in _in_value(used, True)} & candidates
    given: Mapping[str, Any] = (
        graphs.bound(node) if compat.schema(node.target) is not None else {"": (node.args, node.kwargs)}
    )
    taken = {name: found for name, value in given.items() if (found := _held(value) & candidates)}
    if needed or not taken:
        return frozenset(needed)
    return _takes(node, given, frozenset(taken)) or frozenset().union(*taken.values())


def _takes(node: fx.Node, given: Mapping[str, Any], names: frozenset[str]) -> list[Edit]:
    """The edits by which an operator takes the named arguments as inputs; none if it cannot."""
    target: Any = node.target
    if target is aten.clamp.default and len(names) == 1 and None in (given["min"], given["max"]):
        return [Number(name, _expr(given[name])) for name in names if not _is_narrow(node)]
    if target in TENSOR_FORMS or target in TENSOR_SLOTS:
        if names <= {"self", "other", "exponent", "value"} and len(names) == 1 and not _is_narrow(node):
            return [Number(name, _expr(given[name])) for name in names]
        return []
    if target in FILLS and names == frozenset((FILLS[target],)) and not _is_narrow(node):
        return [Number(FILLS[target], _expr(given[FILLS[target]]))]
    if (target is iota and names == frozenset(("start",))) or (target is ARANGE and _is_shifted(node, given)):
        return [Shift(_expr(given["start"]))]
    if target in (aten.select.int, aten.select_scatter.default) and names == frozenset(("index",)):
        position = _from_start(given, given["index"])
        if position is None:
            return []
        axis = given["dim"] % given["self"].meta["val"].ndim
        return [Element(axis, position)] if target is aten.select.int else [WritePosition(axis, position)]
    if target in (aten.slice.Tensor, aten.slice_scatter.default) and names <= {"start", "end"} and "start" in names:
        position = _from_start(given, given["start"])
        if position is None or type(given["step"]) is not int:
            return []
        axis = given["dim"] % given["self"].meta["val"].ndim
        return [(SliceWindow if target is aten.slice.Tensor else WindowPut)(axis, position, given["step"])]
    return []


def _is_shifted(node: fx.Node, given: Mapping[str, Any]) -> bool:
    """Whether an ``arange`` is of whole numbers, as many whatever it starts with."""
    return not node.meta["val"].dtype.is_floating_point and type(given["step"]) is int


NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16)
CHECKED = (aten.masked_fill.Scalar, aten.clamp.default, *FILLS)


def _is_narrow(node: fx.Node) -> bool:
    """Whether eager decides by a number's value what an operator does: it refuses one that a type lacks."""
    tensors = [used.meta["val"] for used in node.all_input_nodes if isinstance(used.meta.get("val"), torch.Tensor)]
    dtype = node.meta["val"].dtype
    if node.target in CHECKED and dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.float16,
    ):
        return True
    return node.target not in FILLS and (not tensors or any(tensor.dtype is torch.bool for tensor in tensors))


def _expr(value: Any) -> Any:
    return sympy.sympify(expression(value))


def _from_start(given: Mapping[str, Any], index: Any) -> Any:
    """A place along a dimension of known size, counted from its start; torch has checked that it is inside."""
    size = given["self"].meta["val"].shape[given["dim"]]
    return compat.python_mod(_expr(index), size) if type(size) is int and size > 0 else None
