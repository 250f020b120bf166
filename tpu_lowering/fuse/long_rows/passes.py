"""Rows that are too long for VMEM: which of a region's reductions one pass over the blocks of a row computes.

A kernel whose grid runs over the blocks of a row adds up what reductions give on each block. XLA does the same, once
for every reduction that waits for another. One pass is enough for two kinds of reductions that wait, because what they
have so far can follow when the value that they wait for moves::

    m = max(x);  s = sum(exp(x - m))      s * exp(m - m') + sum over the block of exp(x - m')
    a = mean(x); v = sum((x - a) ** 2)    v + n * (a - a') ** 2 + sum over the block of (x - a') ** 2

So a softmax, the loss of a cross entropy and a variance take one pass for all their reductions (Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018). What is computed of them and of whole rows again stays XLA's, which
writes it in another pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.rows.planning import bound_operand, least_bytes
from tpu_lowering.fuse.space.kinds import is_constant, kind_of
from tpu_lowering.fuse.space.row_plans import RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import RowRegion, tensor_operands
from tpu_lowering.fuse.space.spaces import Dim, dims_of
from tpu_lowering.fuse.xla.bytes import bytes_by_xla
from tpu_lowering.ir import graphs

aten = compat.aten

Merge = Literal["add", "mean", "max", "min"]

MERGES: dict[Any, Merge] = {
    aten.sum.dim_IntList: "add",
    aten.sum.default: "add",
    aten.gather.default: "add",  # one block has the element, the others give 0
    aten.mean.dim: "mean",
    aten.mean.default: "mean",
    aten.amax.default: "max",
    aten.amin.default: "min",
}
"""How the results of a reduction on two parts of a row become that on both."""


@dataclasses.dataclass(frozen=True)
class Move:
    """What a sum so far must follow.

    Attributes:
        how: "rescaled", for a sum of exp(z - value); "recentred", for one of (z - value) ** 2.
        value: of each row, computed of the reductions of the same pass.
        others: what else the sum is computed of.
    """

    how: Literal["rescaled", "recentred"]
    value: fx.Node
    others: tuple[fx.Node, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class BlockPass(RowPlan):
    """Reductions, the outputs, that one kernel computes in one pass over the blocks of rows.

    Attributes:
        moves: the sums that follow others, and how.
    """

    moves: Mapping[fx.Node, Move] = dataclasses.field(default_factory=dict)


def one_pass_each(region: RowRegion, members: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The reductions of a region's members, those of one pass over the same dimensions together, in order."""
    passes: dict[fx.Node, int] = {}
    ready = _Ready(region, members, passes)
    for member in members:
        if _merges(region, member):
            move = move_of(region, member)
            passes[member] = ready.of([member.args[0]])
            if move is not None:
                passes[member] = min(passes[member], max(ready.of(move.others), ready.of([move.value]) - 1))
    found: dict[tuple[int, frozenset[Dim]], list[fx.Node]] = {}
    for member, number in sorted(passes.items(), key=lambda item: item[1]):
        found.setdefault((number, region.reductions[member]), []).append(member)
    return list(found.values())


class _Ready:
    """The first pass in which a value can be computed of whole blocks: after those of all reductions that it needs."""

    def __init__(self, region: RowRegion, members: Iterable[fx.Node], passes: Mapping[fx.Node, int]) -> None:
        self.region, self.members, self.passes = region, set(members), passes

    def of(self, nodes: Iterable[Any]) -> int:
        pending = [node for node in nodes if isinstance(node, fx.Node)]
        seen: set[fx.Node] = set()
        first = 0
        while pending:
            node = pending.pop()
            if node in seen or node not in self.members:
                continue
            seen.add(node)
            if node in self.passes:
                first = max(first, self.passes[node] + 1)
            else:
                pending += node.all_input_nodes
        return first


def pass_plan(region: RowRegion, members: Sequence[fx.Node], reductions: Sequence[fx.Node]) -> BlockPass | None:
    """The kernel for the reductions of one pass; None if it moves no fewer bytes than XLA.

    Args:
        region: the region.
        members: its members, in order.
        reductions: those of the pass, over the same dimensions. Reductions of earlier ones are operands.
    """
    region = dataclasses.replace(region, rows=region.reductions[reductions[0]])  # of what may be rows of rows
    live, pending = set(reductions), list(reductions)
    while pending:
        for used in tensor_operands(pending.pop()):
            if used in members and used not in live and _in_block(region, used):
                live.add(used)
                pending.append(used)
    kept = [member for member in members if member in live]
    bound: dict[tuple[fx.Node, fx.Node], RowOperand] = {}
    for member in kept:
        for used in tensor_operands(member):
            if used not in live and not is_constant(used):
                known = region.accesses.get(used)
                operand = bound_operand(region, member, used) if known is None else RowOperand(used, known)
                if operand is None:
                    return None
                bound[member, used] = operand
    moves = {node: move for node in reductions if (move := move_of(region, node)) is not None}
    moves = {node: move for node, move in moves.items() if _moves_with(region, move.value, reductions)}
    found = BlockPass(region, tuple(kept), bound, tuple(reductions), moves=moves)
    return found if least_bytes(found) < bytes_by_xla(found) else None


def _moves_with(region: RowRegion, value: fx.Node, reductions: Sequence[fx.Node]) -> bool:
    found = _reductions_of(region, value)
    return bool(found) and all(node in reductions for node in found or ())


def _in_block(region: RowRegion, node: fx.Node) -> bool:
    """Whether a value that is no reduction is computed of its operands' blocks at the same place."""
    kind = kind_of(node)
    return kind is not None and node not in region.reductions and kind.name in ("pointwise", "view", "place")


def _merges(region: RowRegion, node: fx.Node) -> bool:
    if node not in region.reductions or region.is_sum(node) or node.target not in MERGES:
        return False
    return node.meta["val"].dtype != torch.bool


def move_of(region: RowRegion, node: fx.Node) -> Move | None:
    """What a sum over rows can follow; None if nothing that is known."""
    if MERGES.get(node.target) not in ("add", "mean") or node.target is aten.gather.default:
        return None
    at, others = node.args[0], list[fx.Node]()
    while isinstance(at, fx.Node):
        given = graphs.bound(at) if kind_of(at) is not None else {}
        if at.target is aten.exp.default:
            return _rescaled(region, given["self"], others)
        if not others and (base := _squared(at, given)) is not None:
            return _recentred(region, node, base)
        if at.target is aten.mul.Tensor and isinstance(given["other"], fx.Node):
            factors = (given["self"], given["other"])
            exps = [factor for factor in factors if _without_casts(factor).target is aten.exp.default]
            if len(exps) != 1:
                return None
            others += [factor for factor in factors if factor is not exps[0]]
            at = exps[0]
        elif at.target in (aten.mul.Tensor, aten.div.Tensor):
            others += [given["other"]] if isinstance(given["other"], fx.Node) else []
            at = given["self"]
        elif at.target is aten.neg.default or _is_cast(at):
            at = given["self"]
        else:
            return None
    return None


def _rescaled(region: RowRegion, exponent: fx.Node, others: Sequence[fx.Node]) -> Move | None:
    """The move of a sum of exp(z - m), where m is computed, row by row, of the maximum of z: no exponent of any block
    is above 0 then, if none is in the end."""
    exponent = _without_casts(exponent)
    if exponent.target is not aten.sub.Tensor or graphs.bound(exponent).get("alpha", 1) != 1:
        return None
    whole, value = graphs.bound(exponent)["self"], graphs.bound(exponent)["other"]
    if not isinstance(whole, fx.Node) or not isinstance(value, fx.Node):
        return None
    tops = _reductions_of(region, value)
    if tops is None or len(tops) != 1 or MERGES.get(tops[0].target) != "max":
        return None
    same = _without_casts(tops[0].args[0]) is _without_casts(whole)  # type: ignore[arg-type]
    return Move("rescaled", value, (whole, *others)) if same else None


def _recentred(region: RowRegion, node: fx.Node, base: fx.Node) -> Move | None:
    """The move of a sum of (z - a) ** 2, in float32, where a is the mean of z."""
    if base.target is not aten.sub.Tensor or graphs.bound(base).get("alpha", 1) != 1:
        return None
    whole, value = graphs.bound(base)["self"], graphs.bound(base)["other"]
    if not isinstance(value, fx.Node) or base.meta["val"].dtype != torch.float32:
        return None
    mean = _without_views(value)
    if MERGES.get(mean.target) != "mean" or mean.args[0] is not whole or mean.meta["val"].dtype != torch.float32:
        return None
    return Move("recentred", value, (whole,)) if region.reductions.get(mean) == region.reductions[node] else None


def _squared(node: fx.Node, given: Mapping[str, Any]) -> fx.Node | None:
    """What a node is the square of."""
    is_product = node.target is aten.mul.Tensor and given["self"] is given["other"]
    is_power = node.target is aten.pow.Tensor_Scalar and given["exponent"] == 2
    return given["self"] if is_product or is_power else None


def _reductions_of(region: RowRegion, value: fx.Node) -> list[fx.Node] | None:
    """The reductions that a value of each row is computed of; None if it is computed of anything but those."""
    found: list[fx.Node] = []
    pending, seen = [value], set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen or is_constant(node):
            continue
        seen.add(node)
        if node in region.reductions:
            found.append(node)
        elif node in region.accesses and not dims_of(region.accesses[node]) & region.rows and _in_block(region, node):
            pending += tensor_operands(node)
        else:
            return None
    return found


def _is_cast(node: fx.Node) -> bool:
    return node.target is aten._to_copy.default and node.meta["val"].dtype.is_floating_point


def _without_casts(node: fx.Node) -> fx.Node:
    while _is_cast(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _without_views(node: fx.Node) -> fx.Node:
    while (kind := kind_of(node)) is not None and kind.name == "view" and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
