"""A pass's members over one block of long rows: its reductions so far become those with the block."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.long_rows.passes import MERGES, BlockPass
from tpu_lowering.fuse.rows.block_graph import BlockGraph, held_as, source_access
from tpu_lowering.fuse.rows.tiles import Tiling
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.spaces import Dim
from tpu_lowering.ir.rows import recentred, rescaled

aten = compat.aten

COUNTED = ("seen", "count")
"""Names of the inputs that say how many elements of a row came before a block, and how many there are with it."""


def kept_as(dtype: torch.dtype) -> torch.dtype:
    """The element type of what a reduction has so far."""
    return torch.float32 if dtype.is_floating_point else held_as(dtype)


class RunningBody(BlockGraph):
    """See the module's docstring.

    Inputs are the operands' blocks, a mask for each ragged dimension of a row, the places of a block's elements along
    dimensions that are indexed, two counts, and what each reduction has so far.

    Attributes:
        placed: the dimensions with places.
        counted: whether there are counts.
    """

    plan: BlockPass

    def __init__(self, plan: BlockPass, tiling: Tiling) -> None:
        self.placed: list[Dim] = []
        self.counted = any(MERGES[node.target] == "mean" for node in plan.outputs)
        self.before: dict[fx.Node, fx.Node] = {}
        self.after: dict[fx.Node, fx.Node] = {}
        super().__init__(plan, tiling)

    def _masked_dims(self) -> frozenset[Dim]:
        return self.plan.region.rows

    def _more_inputs(self, mode: Any) -> None:
        indexed = [dim for member in self.plan.members if (dim := self._indexed(member)) is not None]
        self.placed = [dim for dim in self.order if dim in indexed]
        for dim in self.placed:
            name = f"places_{self.order.index(dim)}"
            self.values["place", dim] = self._input(mode, name, self.shape(((dim,),)), torch.int32)
        for name in COUNTED if self.counted else ():
            self.values[name] = self._input(mode, name, (1,) * len(self.order), torch.float32)
        for node in self.plan.outputs:
            shape = self.shape(self.plan.region.accesses[node])
            self.before[node] = self._input(mode, f"{node.name}_before", shape, kept_as(node.meta["val"].dtype))

    def _input(self, mode: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        node = self.graph.placeholder(name)
        with mode:
            node.meta["val"] = torch.empty(shape, dtype=dtype)
        return node

    def _indexed(self, member: fx.Node) -> Dim | None:
        kind = kind_of(member)
        if kind is None or kind.name not in ("pick", "place"):
            return None
        (dim,) = source_access(self.plan, member)[kind.dims[0]]
        return dim

    def _places(self, member: fx.Node, dim: Dim) -> fx.Node:
        return self.values["place", dim]

    def _stored(self, member: fx.Node) -> fx.Node:
        return self.after[member]

    def _compute(self, member: fx.Node) -> None:
        super()._compute(member)
        if member in self.plan.outputs:
            self.after[member] = self._merged(member, self._cast(member, self.values[member], self.before[member]))
            self.values[member] = self._cast(member, self.after[member], member)

    def _cast(self, member: fx.Node, node: fx.Node, like: fx.Node) -> fx.Node:
        """A value of a member in the dtype of another one."""
        dtype = like.meta["val"].dtype
        return node if node.meta["val"].dtype == dtype else self._call(member, aten._to_copy.default, node, dtype=dtype)

    def _merged(self, member: fx.Node, part: fx.Node) -> fx.Node:
        """What a reduction has with a block, by what it gives on the block."""
        before, merge = self.before[member], MERGES[member.target]
        if merge in ("max", "min"):
            return self._call(member, aten.maximum.default if merge == "max" else aten.minimum.default, before, part)
        if merge == "mean":
            before = self._call(member, aten.mul.Tensor, before, self.values["seen"])
        if member in self.plan.moves:
            before = self._moved(member, before)
        total = self._call(member, aten.add.Tensor, before, part)
        return self._call(member, aten.div.Tensor, total, self.values["count"]) if merge == "mean" else total

    def _moved(self, member: fx.Node, total: fx.Node) -> fx.Node:
        """A sum so far, after what it follows has moved."""
        move = self.plan.moves[member]
        old, new = self._value_before(move.value), self._value(member, move.value)
        old, new = self._cast(member, old, total), self._cast(member, new, total)
        if move.how == "rescaled":
            return self._call(member, rescaled, total, old, new)
        return self._call(member, recentred, total, old, new, self.values["seen"])

    def _value_before(self, node: fx.Node) -> fx.Node:
        """A value of each row, computed of what reductions had before the block."""
        kind = kind_of(node)
        if node in self.before:
            return self._cast(node, self.before[node], node)
        if node not in self.plan.members or kind is None:
            return self.values[node]
        if kind.name == "view":
            return self._value_before(node.args[0])  # type: ignore[arg-type]
        return self._pointwise(node, lambda used: self._before_in(node, used))

    def _before_in(self, member: fx.Node, used: fx.Node) -> fx.Node:
        return self._value_before(used) if used in self.plan.members else self._value(member, used)

    def _reduce(self, member: fx.Node) -> fx.Node:
        dims, merge = self.plan.region.reductions[member], MERGES[member.target]
        whole = self._whole(member, source_access(self.plan, member))
        dtype = whole.meta["val"].dtype
        for dim in self.masks:
            nothing = self._call(member, aten.full.default, [1] * len(self.order), identity(merge, dtype), dtype=dtype)
            whole = self._call(member, aten.where.self, self.values[dim], whole, nothing)
        positions = [self.order.index(dim) for dim in self.order if dim in dims]
        if merge in ("add", "mean"):
            return self._call(member, aten.sum.dim_IntList, whole, positions, True, dtype=kept_as(dtype))
        return self._call(member, aten.amax.default if merge == "max" else aten.amin.default, whole, positions, True)


def identity(merge: str, dtype: torch.dtype) -> float | int:
    """What changes nothing."""
    if merge in ("add", "mean"):
        return 0
    if dtype.is_floating_point:
        return float("-inf") if merge == "max" else float("inf")
    limits = torch.iinfo(dtype)
    return limits.min if merge == "max" else limits.max
