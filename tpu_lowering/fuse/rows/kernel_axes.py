"""The axes of a kernel's arrays: its space's dimensions in the order in which its values lie in memory.

An image ``[n, c, h, w]`` lies in memory as ``[n, h, w, c]`` where ``w`` fills no tiles (``layouts``). A kernel that
normalises groups of channels takes it so: its axes are ``n``, ``h``, ``w``, and the two dimensions ``g`` and ``k`` of
the channels together, because what lies along lanes cannot be split without a copy. What is reduced over ``k`` there is
a sum of groups of lanes (``ir.rows.group_sums``), and stands in each lane of its group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.along import ALONG
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_plans import Lying, RowPlan
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.fuse.space.spaces import AccessMap, Dim, Run, Space, dims_of
from tpu_lowering.fuse.xla.layouts import Order, bytes_of, order_of, order_wanted
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.ir.chips import LANES, SUBLANES

aten = compat.aten

GROUPED = frozenset((
    aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.var.correction,
    aten.var_mean.correction,
))  # fmt: skip
"""Reductions that are made of sums, which a kernel can compute over groups of lanes."""

WIDEST = 2048
"""Lanes among which groups are summed by a product, if a tile holds no whole groups."""

AxisRuns = tuple[Run, ...]


def arranged(plan: RowPlan) -> tuple[RowPlan, int] | None:
    """A plan whose space has one dimension for each axis of the kernel's arrays, so that the compiler copies as little
    as possible around it.

    Returns:
        The plan, and the bytes that are copied; None if no kernel can compute its members.
    """
    natural: AxisRuns = tuple((dim,) for dim in plan.region.space.sizes)
    if plan.products:
        return plan, 0
    lying = _lying(plan)
    forms = [natural, *(axes for order in lying for axes in _forms(plan, order[0]))]
    found = [axes for axes in forms if _is_possible(plan, axes)]
    if not found:
        return None
    copied = {axes: sum(2 * size for runs, size in lying if not _is_free(plan, runs, axes)) for axes in found}
    best = min(copied, key=copied.__getitem__)
    return (plan, copied[best]) if best == natural else (_with_axes(plan, best), copied[best])


def copied_by_xla(plan: RowPlan) -> int:
    """The bytes that XLA copies to reduce a part of what lies along lanes, and nothing with it, as of each head."""
    partly = [dims for node, dims in plan.region.reductions.items() if node in plan.members]
    lying = _lying(plan)
    return sum(2 * size for runs, size in lying if any(dims < frozenset(runs[-1]) for dims in partly))


def _lying(plan: RowPlan) -> list[tuple[AxisRuns, int]]:
    """How those operands and outputs lie that run along the whole space, where it is known, and their bytes."""
    taken = [(operand.node, operand.access, order_of(operand.node)) for operand in plan.operands()]
    given = [(node, plan.region.accesses[node], order_wanted(node)) for node in plan.outputs]
    whole = frozenset(plan.region.space.sizes)
    return [
        (_runs(access, order), bytes_of(node))
        for node, access, order in taken + given
        if order is not None and dims_of(access) == whole
    ]


def _runs(access: AccessMap, order: Order) -> AxisRuns:
    return tuple(access[axis] for axis in order if access[axis])


def _forms(plan: RowPlan, lying: AxisRuns) -> list[AxisRuns]:
    """Axes for values that lie in a way: what is no tile is split, and what is one need not be."""
    *outer, inner = lying
    split: AxisRuns = tuple((dim,) for run in outer for dim in run)
    forms: list[AxisRuns] = [(*split, inner), (*split, *((dim,) for dim in inner))]
    if outer and len(outer[-1]) > 1:
        forms.append((*split[: -len(outer[-1])], outer[-1], inner))
    return forms


def _is_possible(plan: RowPlan, axes: AxisRuns) -> bool:
    """Whether a kernel can compute all members with some dimensions together along an axis. Only along the last one it
    can reduce some of them without the others."""
    lanes, region = axes[-1], plan.region
    for member in plan.members:
        kind = kind_of(member)
        near = kind.dims if kind is not None and kind.name == "along" and ALONG[member.target].near_lanes else ()
        if any(region.accesses[member][dim] not in axes[-2:] for dim in near):
            return False
        reduced = region.reductions.get(member, frozenset[Dim]())
        for run in axes:
            partly = [dim for dim in run if dim in reduced]
            if partly and partly != list(run) and not (run == lanes and _is_group(plan, member, partly, lanes)):
                return False
    return not region.whole & {dim for run in axes if len(run) > 1 for dim in run}


def _is_group(plan: RowPlan, member: fx.Node, reduced: Sequence[Dim], lanes: Run) -> bool:
    """Whether a reduction is one of sums of neighbouring lanes, all of them in few tiles or groups within tiles."""
    count, together = plan.region.space.size(lanes), plan.region.space.size(tuple(reduced))
    in_tiles = count % LANES == 0 and (LANES % together == 0 or together % LANES == 0)
    is_last = tuple(reduced) == lanes[-len(reduced) :] and (in_tiles or count <= WIDEST)
    return is_last and member.target in GROUPED and not plan.region.is_sum(member)


def _is_free(plan: RowPlan, lying: AxisRuns, axes: AxisRuns) -> bool:
    """Whether the compiler takes what lies in a way for an array of these axes without a copy."""
    sizes = plan.region.space.sizes
    if [dim for run in lying for dim in run] != [dim for run in axes for dim in run] or lying[-1] != axes[-1]:
        return False
    rows = [math.prod(sizes[dim] for dim in form[-2]) if len(form) > 1 else 1 for form in (lying, axes)]
    return rows[0] == rows[1] or all(size % SUBLANES == 0 for size in rows)


def _with_axes(plan: RowPlan, axes: AxisRuns) -> RowPlan:
    """A plan in the space of a kernel's axes, each of which has the name of its first dimension."""
    region, sizes = plan.region, plan.region.space.sizes
    names = {dim: run[0] for run in axes for dim in run}

    def now(access: AccessMap) -> AccessMap:
        return tuple(tuple(dict.fromkeys(names[dim] for dim in run)) for run in access)

    def dims(old: frozenset[Dim]) -> frozenset[Dim]:
        return frozenset(names[dim] for dim in old)

    inside = [member for member in plan.members if member in region.reductions]
    arranged = dataclasses.replace(
        region,
        space=Space({run[0]: math.prod(sizes[dim] for dim in run) for run in axes}),
        accesses={node: now(access) for node, access in region.accesses.items()},
        rows=dims(region.rows),
        reductions={node: dims(region.reductions[node]) for node in inside},
        sources={node: now(access) for node, access in region.sources.items()},
        whole=dims(region.whole),
    )
    operands = {o: dataclasses.replace(o, access=now(o.access), fine=o.access) for o in plan.operands()}
    groups = {
        node: math.prod(sizes[dim] for dim in axes[-1] if dim in region.reductions[node])
        for node in inside
        if region.reductions[node] & set(axes[-1]) not in (frozenset(), frozenset(axes[-1]))
    }
    return dataclasses.replace(
        plan,
        region=arranged,
        bound={key: operands[operand] for key, operand in plan.bound.items()},
        lying=Lying(region.space, axes, {node: region.accesses[node] for node in plan.outputs}),
        groups=groups,
    )


def as_axes(graph: fx.Graph, node: fx.Node, access: AccessMap, lying: Lying) -> fx.Node:
    """A value that runs along a space, with one axis for each of a kernel's: repeated along dimensions that it does not
    run along where they share one with some that it does."""
    sizes, dims = lying.space.sizes, [dim for run in access for dim in run]
    flat = [dim for run in lying.axes for dim in run]
    order = [dim for dim in flat if dim in dims]
    if order != dims:
        node = graphs.reshaped(graph, node, [sizes[dim] for dim in dims])
        node = graphs.call(graph, aten.permute.default, node, [dims.index(dim) for dim in order])
    wanted = [[sizes[dim] if set(run) & set(dims) else 1 for dim in run] for run in lying.axes]
    spread = [size for run in wanted for size in run]
    if spread != [sizes[dim] if dim in dims else 1 for dim in flat]:
        node = graphs.reshaped(graph, node, [sizes[dim] if dim in dims else 1 for dim in flat])
        node = graphs.call(graph, aten.expand.default, node, spread)
    return graphs.reshaped(graph, node, [math.prod(run) for run in wanted])


def restored(graph: fx.Graph, result: fx.Node, node: fx.Node, lying: Lying) -> fx.Node:
    """The value of a plan's output, of the kernel's result."""
    sizes, access = lying.space.sizes, lying.outputs[node]
    dims = [dim for run in access for dim in run]
    flat = [dim for run in lying.axes for dim in run]
    spread = [sizes[dim] if set(run) & set(dims) else 1 for run in lying.axes for dim in run]
    kept = [sizes[dim] if dim in dims else 1 for dim in flat]
    if spread != kept:
        result = graphs.reshaped(graph, result, spread)
        result = graphs.call(graph, read_box, result, Box.whole(kept))
    order = [dim for dim in flat if dim in dims]
    if order != dims:
        result = graphs.reshaped(graph, result, [sizes[dim] for dim in order])
        result = graphs.call(graph, aten.permute.default, result, [order.index(dim) for dim in dims])
    return graphs.reshaped(graph, result, shape_of(node))
