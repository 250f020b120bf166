"""Masks that depend on how far a key is from a query alone, found by their arithmetic: no mask is computed.

``arange(n) <= arange(n)[:, None]`` compares two numbers that grow by one along a dimension each: what it gives depends
on their difference alone, the diagonal that an element is on. Whatever pointwise operators make of such tensors is
computed once for each diagonal, by the operators themselves: 65,535 numbers for 32,768 queries and as many keys.

A node is one of three things, or unknown:

==========  =================================================================================
constant    one value in all elements
line        a value for each position along one dimension: ``arange``, and what is made of it
diagonals   a value for each difference of the positions along two dimensions
==========  =================================================================================
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.ir.operators import ALLOCATIONS, FILLS
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

Function = Callable[..., Any]
DIFFERENCES: dict[Any, Function] = {
    aten.sub.Tensor: operator.sub, aten.lt.Tensor: operator.lt, aten.le.Tensor: operator.le,
    aten.gt.Tensor: operator.gt, aten.ge.Tensor: operator.ge, aten.eq.Tensor: operator.eq, aten.ne.Tensor: operator.ne,
}  # fmt: skip
"""What depends on the difference of two numbers alone: of 0 and that, it is the same."""
ONES = (aten.ones.default, aten.ones_like.default, aten.new_ones.default)


@dataclasses.dataclass(frozen=True, eq=False)
class Varying:
    """What a tensor holds.

    Attributes:
        values: one; or one for each position along a dimension; or one for each diagonal, from that of the last row
            and the first column on.
        dims: the dimension, or the dimensions of rows and of columns, counted from the last one, -1.
    """

    values: torch.Tensor
    dims: tuple[int, ...] = ()

    def simplified(self) -> Varying:
        """The same, as a constant if it is one."""
        same = bool((self.values[1:] == self.values[:1]).all())
        return Varying(self.values[:1]) if same else self


def varying(node: fx.Node, known: dict[fx.Node, Varying | None]) -> Varying | None:
    """What a node holds; None if it is none of the three. ``known`` has what was found of others, and gets it."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        needed = waiting.pop()
        if needed not in known:
            order.pop(needed, None)
            order[needed] = None
            waiting += [] if _is_source(needed) else needed.all_input_nodes
    for needed in reversed(order):
        if needed not in known:
            known[needed] = _found(needed, known)
    return known[node]


def _is_source(node: fx.Node) -> bool:
    return node.op != "call_function" or node.target in FILLS


def _found(node: fx.Node, known: Mapping[fx.Node, Varying | None]) -> Varying | None:
    value, tags = node.meta.get("val"), getattr(node.target, "tags", ())
    if not isinstance(value, torch.Tensor) or 0 in value.shape or torch.Tag.nondeterministic_seeded in tags:
        return None
    if node.op == "get_attr":
        return _line(getattr(node.graph.owning_module, str(node.target)))
    if node.op != "call_function" or node.target in ALLOCATIONS:
        return None
    if node.target in FILLS:
        fill = 1 if node.target in ONES else graphs.bound(node).get("fill_value", 0)
        return Varying(torch.full((1,), fill, dtype=value.dtype))
    given = [known[used] for used in node.all_input_nodes]
    if not given:
        return _line(_made(node)) if math.prod(value.shape) <= max(value.shape, default=1) else None
    if any(one is None for one in given):
        return None
    if node.target in (*IDENTITIES, *RESHAPES, aten.expand.default, aten.permute.default, aten.slice.Tensor, read_box):
        return _viewed(node, given[0])  # type: ignore[arg-type]
    if node.target in (aten.tril.default, aten.triu.default):
        return _triangle(node, given[0])  # type: ignore[arg-type]
    return _pointwise(node, known) if torch.Tag.pointwise in tags or node.target is aten._to_copy.default else None


def _made(node: fx.Node) -> torch.Tensor:
    """What a call that takes no tensor gives."""
    on_cpu = {"device": torch.device("cpu")} if "device" in node.kwargs else {}
    return node.target(*node.args, **{**node.kwargs, **on_cpu})  # type: ignore[operator]


def _line(value: torch.Tensor) -> Varying | None:
    """What a tensor in memory holds, if it has one dimension that is not of size 1."""
    dims = [at - value.ndim for at, size in enumerate(value.shape) if size != 1]
    return Varying(value.reshape(-1), tuple(dims)).simplified() if len(dims) < 2 and value.numel() else None


def _viewed(node: fx.Node, source: Varying) -> Varying | None:
    """A view of what is known, along the same dimensions, wherever those are now."""
    shape, before = graphs.type_of(node).shape, graphs.type_of(node.args[0]).shape  # type: ignore[arg-type]
    if not source.dims or node.target in IDENTITIES:
        return source
    if node.target is aten.expand.default:
        return source if all(before[dim] == shape[dim] for dim in source.dims) else None
    if node.target is aten.permute.default:
        order = [dim % len(shape) for dim in graphs.bound(node)["dims"]]
        return Varying(source.values, tuple(order.index(dim % len(shape)) - len(shape) for dim in source.dims))
    if node.target is read_box:
        return _cut(source, before, node.args[1])  # type: ignore[arg-type]
    if node.target is aten.slice.Tensor:
        given = graphs.bound(node)
        whole = [(0, size, 1) for size in before]
        whole[given["dim"]] = slice(given["start"], given["end"], given["step"]).indices(before[given["dim"]])
        return _cut(source, before, Box.of(whole))
    kept, own = ([at - len(sizes) for at, size in enumerate(sizes) if size != 1] for sizes in (before, shape))
    same = [before[dim] for dim in kept] == [shape[dim] for dim in own] and set(source.dims) <= set(kept)
    return Varying(source.values, tuple(own[kept.index(dim)] for dim in source.dims)) if same else None


def _cut(source: Varying, before: Sequence[int], box: Box) -> Varying | None:
    """What a box of a tensor holds."""
    ranges = [box.ranges[dim] for dim in source.dims]
    if len(ranges) == 1:
        return Varying(source.values[slice(*ranges[0])], source.dims).simplified()
    (top, bottom, step), (left, right, other) = ranges
    if (step, other) != (1, 1):
        return None
    lowest = left - (bottom - 1) + before[source.dims[0]] - 1
    return Varying(source.values[lowest : lowest + bottom - top + right - left - 1], source.dims).simplified()


def _triangle(node: fx.Node, source: Varying) -> Varying | None:
    """``tril`` or ``triu`` of a constant, or of diagonals of the last two dimensions."""
    rows, columns = graphs.type_of(node).shape[-2:]
    if source.dims not in ((), (-2, -1)):
        return None
    diagonals, given = torch.arange(1 - rows, columns), graphs.bound(node)["diagonal"]
    kept = diagonals <= given if node.target is aten.tril.default else diagonals >= given
    return Varying(torch.where(kept, source.values, torch.zeros((), dtype=source.values.dtype)), (-2, -1)).simplified()


def _pointwise(node: fx.Node, known: Mapping[fx.Node, Varying | None]) -> Varying | None:
    dims = {one.dims for used in node.all_input_nodes if (one := known[used]) is not None and one.dims}
    if len(dims) > 1:
        return _difference(node, known)

    def values(used: fx.Node) -> torch.Tensor:
        found = known[used]
        assert found is not None
        return found.values if used.meta["val"].ndim else found.values.reshape(())

    args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), values)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "layout", "pin_memory")}
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return Varying(result.reshape(-1), *dims).simplified()


def _difference(node: fx.Node, known: Mapping[fx.Node, Varying | None]) -> Varying | None:
    """A comparison or a difference of numbers that grow alike, one along rows and one along columns."""
    if node.target not in DIFFERENCES or len(node.args) != 2 or node.kwargs:
        return None
    one, other = (known[arg] if isinstance(arg, fx.Node) else None for arg in node.args)
    if one is None or other is None or len(one.dims) != 1 or len(other.dims) != 1:
        return None
    step = _step(one.values)
    if step is None or step != _step(other.values):
        return None
    rows, columns = sorted((one, other), key=lambda given: given.dims)
    diagonals = torch.arange(1 - len(rows.values), len(columns.values))
    by_column = columns.values[0].long() - rows.values[0].long() + step * diagonals
    values = DIFFERENCES[node.target](0, by_column if rows is one else -by_column)
    return Varying(values.to(node.meta["val"].dtype), (rows.dims[0], columns.dims[0])).simplified()


def _step(values: torch.Tensor) -> int | None:
    """By how much integers grow, from each to the next; None if they do not evenly."""
    if values.dtype not in (torch.int32, torch.int64) or len(values) < 2:
        return None
    steps = values[1:] - values[:-1]
    return int(steps[0]) if bool((steps == steps[0]).all()) else None
