"""Operands of a plan that a kernel computes for itself, of what lies in memory in fewer bytes.

Before, the kernel takes ``wide`` and ``twice``, 8 bytes of each element::

    wide = aten._to_copy(x, dtype=float32)
    twice = aten.mul(wide, 2)
    k = kernel_call(sum_rows, (wide, twice))

After, it takes ``x``::

    k = kernel_call(sum_rows, (x,))

Whoever else uses ``wide`` computes it where it is used, as XLA fuses it; a kernel's operand would be written. So it is
with rows that a backward computes again: they belong to the region of the forward's norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from torch import fx

from tpu_lowering.fuse.rows.planning import bound_operand
from tpu_lowering.fuse.space.kinds import is_constant, is_pointwise
from tpu_lowering.fuse.space.row_plans import RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.fuse.space.spaces import AccessMap
from tpu_lowering.fuse.xla.layouts import bytes_of

DEPTH = 8
"""How many operators one after another are looked at for an operand."""


def compute_inside(plan: RowPlan) -> RowPlan:
    """The plan with pointwise work of its operands, wherever what that takes has fewer bytes."""
    if plan.products:
        return plan
    for operand in sorted(plan.operands(), key=lambda operand: operand.node):
        others = {other.node for other in plan.operands() if other != operand}
        viewed = any(used is not operand.node for (_, used), one in plan.bound.items() if one == operand)
        known = {*plan.members, *others}
        if operand.node not in others and not viewed and _is_cheaper_inside(operand.node, known):
            plan = _with(plan, operand, known)
    return plan


def _with(plan: RowPlan, operand: RowOperand, known: Collection[fx.Node]) -> RowPlan:
    """The plan with an operand computed; as it is if the kernel would hold a value in two ways, as rows and columns."""
    accesses, bound = dict(plan.region.accesses), dict(plan.bound)
    inside, waiting = set[fx.Node](), [(operand.node, operand.access)]
    while waiting:
        node, access = waiting.pop()
        if accesses.setdefault(node, access) != access:
            return plan
        if node in plan.members or node in inside:
            continue
        inside.add(node)
        region = dataclasses.replace(plan.region, accesses=accesses)
        for used in _taken(node):
            if used in plan.members or (used not in known and _is_cheaper_inside(used, known)):
                waiting.append((used, _along(access, used)))
            elif (found := bound_operand(region, node, used)) is not None:
                bound[node, used] = found
            else:
                return plan
    kept = {(member, used): one for (member, used), one in bound.items() if used not in inside}
    region = dataclasses.replace(plan.region, accesses=accesses)
    return dataclasses.replace(plan, region=region, members=tuple(sorted({*plan.members, *inside})), bound=kept)


def _along(access: AccessMap, used: fx.Node) -> AccessMap:
    """The access of an operand of pointwise work with some access."""
    shape = shape_of(used)
    own = access[len(access) - len(shape) :]
    return tuple(() if size == 1 else run for run, size in zip(own, shape, strict=True))


def _is_cheaper_inside(node: fx.Node, known: Collection[fx.Node]) -> bool:
    """Whether a kernel that knows some values reads fewer bytes to compute another than to take it."""
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
