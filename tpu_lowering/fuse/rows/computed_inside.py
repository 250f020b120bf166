"""Operands of a plan that a kernel computes for itself, of what lies in memory in fewer bytes.

Before, the kernel takes ``wide`` and ``twice``, 8 bytes of each element::

    wide = aten._to_copy(x, dtype=float32)
    twice = aten.mul(wide, 2)
    k = kernel_call(sum_rows, (wide, twice))

After, it takes ``x``::

    k = kernel_call(sum_rows, (x,))

Whoever else uses ``wide`` computes it where it is used, as XLA fuses it; a kernel's operand would be written. So lie the
rows that a backward computes again: they belong to the region of the forward's norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from torch import fx

from tpu_lowering.fuse.rows.planning import bound_operand
from tpu_lowering.fuse.space.kinds import is_constant, is_pointwise
from tpu_lowering.fuse.space.row_plans import RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import tensor_operands
from tpu_lowering.fuse.xla.layouts import bytes_of


DEPTH = 8
"""How many operators one after another are looked at for an operand."""


def compute_inside(plan: RowPlan) -> RowPlan:
    """The plan with pointwise work of its operands, wherever what that takes has fewer bytes."""
    if plan.products:
        return plan
    for operand in sorted(plan.operands(), key=lambda operand: operand.node):
        plan = _with(plan, operand)
    return plan


def _with(plan: RowPlan, operand: RowOperand) -> RowPlan:
    """The plan with an operand computed; as it is where that takes no fewer bytes, or cannot be."""
    known = {*plan.members, *(other.node for other in plan.operands() if other != operand)}
    accesses, bound = dict(plan.region.accesses), dict(plan.bound)
    inside, waiting = set[fx.Node](), [operand]
    while waiting:
        one = waiting.pop()
        if one.node in inside or not _is_cheaper_inside(one.node, known):
            continue
        inside.add(one.node)
        accesses[one.node] = one.access
        region = dataclasses.replace(plan.region, accesses=accesses)
        for used in _taken(one.node):
            found = None if used in plan.members else bound_operand(region, one.node, used)
            if found is not None:
                bound[one.node, used] = found
                waiting += [found] if found.node not in known else []
    kept = {key: value for key, value in bound.items() if value.node not in inside}
    region = dataclasses.replace(plan.region, accesses=accesses)
    return dataclasses.replace(plan, region=region, members=tuple(sorted({*plan.members, *inside})), bound=kept)


def _is_cheaper_inside(node: fx.Node, known: Collection[fx.Node]) -> bool:
    return _least_bytes(node, known) < bytes_of(node)


def _least_bytes(node: fx.Node, known: Collection[fx.Node], depth: int = 0) -> int:
    """The fewest bytes that a kernel which knows some values reads for another."""
    if node in known:
        return 0
    if depth == DEPTH or node.op != "call_function" or not is_pointwise(node):
        return bytes_of(node)
    return min(bytes_of(node), sum(_least_bytes(used, known, depth + 1) for used in _taken(node)))


def _taken(node: fx.Node) -> list[fx.Node]:
    return [used for used in tensor_operands(node) if not is_constant(used)]
