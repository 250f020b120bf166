"""Rows that XLA is expected to keep in VMEM between what makes them and what uses them: a kernel would move them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_plans import RowPlan
from tpu_lowering.fuse.space.row_regions import PRODUCTS, shape_of, tensor_operands
from tpu_lowering.fuse.space.spaces import dims_of
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.layouts import bytes_of, is_view, source_of
from tpu_lowering.ir.chips import Chip


def kept_bytes(chip: Chip) -> float:
    """Bytes of the largest matrix product that XLA is expected to keep in VMEM for what follows it; 0 on a CPU."""
    return HEURISTICS.kept_products * chip.vmem_bytes if chip.is_tpu else 0


def is_held(found: RowPlan, chip: Chip) -> bool:
    """Whether XLA is expected to keep the rows in VMEM, from the product that makes them to the one that uses them, or
    to the end; or all products that the kernel would compute; or rows from wherever they come, if they are few. A CPU
    has no such memory."""
    if not chip.is_tpu:
        return False
    if found.products:
        values, share = list(found.products), HEURISTICS.kept_products
    elif values := _whole_between_products(found):
        share = HEURISTICS.kept_scores_in_training if len(found.outputs) > 1 else HEURISTICS.kept_scores
    elif values := _whole_from_products(found):
        share = HEURISTICS.kept_products
    else:
        values, share = _whole_inside(found), HEURISTICS.kept_rows
    return bool(values) and max(map(bytes_of, values)) <= share * chip.vmem_bytes


def _whole_from_products(plan: RowPlan) -> list[fx.Node]:
    """The whole operands of a plan, if they come from matrix products alone; [] for any other plan."""
    taken, _ = _whole(plan)
    return taken if _come_from_products(taken) else []


def _whole_between_products(plan: RowPlan) -> list[fx.Node]:
    """The whole operands and outputs of a plan whose rows come from matrix products alone and go into others alone, as
    the scores and weights of an attention do; [] for any other plan."""
    taken, given = _whole(plan)
    members = set(plan.members)
    users = [user for node in given for user in node.users if user not in members]
    return [*taken, *given] if users and _come_from_products(taken) and _go_into_products(users) else []


def _whole_inside(plan: RowPlan) -> list[fx.Node]:
    """The whole operands and outputs of a plan, if the program computes all such operands; [] for any other plan."""
    taken, given = _whole(plan)
    return [] if any(source_of(node).op == "placeholder" for node in taken) else [*taken, *given]


def _whole(plan: RowPlan) -> tuple[list[fx.Node], list[fx.Node]]:
    """The operands and the outputs of a plan that run along all dimensions of its space."""
    whole = frozenset(plan.region.space.sizes)
    taken = [operand.node for operand in plan.operands() if dims_of(operand.access) == whole]
    return taken, [node for node in plan.outputs if dims_of(plan.region.accesses[node]) == whole]


def _come_from_products(nodes: Sequence[fx.Node]) -> bool:
    """Whether all elements of some nodes come from matrix products, by views and pointwise work."""
    pending, seen = list(nodes), set(nodes)
    while pending:
        node = pending.pop()
        if node.target in PRODUCTS:
            continue
        count = math.prod(shape_of(node))
        whole = [used for used in tensor_operands(node) if math.prod(shape_of(used)) == count]
        if not whole or not _passes_on(node):
            return False
        pending += [used for used in whole if used not in seen]
        seen |= set(whole)
    return True


def _go_into_products(nodes: Sequence[fx.Node]) -> bool:
    """Whether nothing but matrix products uses some nodes, by views and pointwise work."""
    pending, seen = list(nodes), set(nodes)
    while pending:
        node = pending.pop()
        if node.target in PRODUCTS:
            continue
        if not node.users or not _passes_on(node):
            return False
        pending += [user for user in node.users if user not in seen]
        seen |= set(node.users)
    return True


def _passes_on(node: fx.Node) -> bool:
    return is_view(node) or is_pointwise(node)
