"""HBM bytes of a region as XLA would run it.

XLA fuses pointwise work, and reductions of one operand, into single passes, but starts a new pass over the rows for
every reduction that waits for another: a softmax reads its rows for the maximum, for the sum and for the quotient (the
compiled programs of ``bench fusion`` say the same). One kernel reads them once.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

from torch import fx

from tpu_lowering.fuse.space.along import ALONG
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_plans import RowPlan
from tpu_lowering.fuse.space.row_regions import RowRegion
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.into_users import passes_using
from tpu_lowering.fuse.xla.layouts import bytes_of
from tpu_lowering.fuse.xla.one_pass import is_in_one_pass


def bytes_by_xla(plan: RowPlan) -> int:
    """Each operand read once for every pass that needs it, each output written once; but of an output that is computed
    inside what uses it, what that reads instead of it."""
    level, passes = _levels(plan), collections.defaultdict[fx.Node, set[int]](set)
    members, outputs = set(plan.members), set(plan.outputs)
    written: dict[fx.Node, int] = {}
    moved = 0
    for sink in plan.members:
        ends = ends_pass(plan.region, sink)
        if ends:
            first = level[sink] - _passes(plan, sink)
            for at in range(first, max(level[sink], first + 1)):
                for node in _read_for(plan, sink, at, written):
                    passes[node].add(at)
        if sink not in outputs:
            continue
        read = _read_for(plan, sink, level[sink], written)
        instead = sum(map(bytes_of, read))
        if not ends and (users := passes_using(sink, members)):
            moved += users * (instead - bytes_of(sink))
            continue
        for node in () if ends else read:
            passes[node].add(level[sink])
        moved += bytes_of(sink)
        if bytes_of(sink) <= instead:
            written[sink] = level[sink]
    return moved + sum(bytes_of(node) * len(found) for node, found in passes.items())


def ends_pass(region: RowRegion, node: fx.Node) -> bool:
    """Whether XLA goes over rows to compute a node, and again for what is computed of it."""
    kind = kind_of(node)
    return node in region.reductions or (kind is not None and kind.name == "along")


def _passes(plan: RowPlan, node: fx.Node) -> int:
    kind = kind_of(node)
    if kind is None or not ends_pass(plan.region, node) or is_in_one_pass(plan.region, node, plan.outputs):
        return 0
    return getattr(HEURISTICS, ALONG[node.target].passes) if kind.name == "along" else kind.passes


def _levels(plan: RowPlan) -> dict[fx.Node, int]:
    """For each member, how many reductions over whole rows one after another its value waits for."""
    level: dict[fx.Node, int] = {}
    for member in plan.members:
        before = max((level[used] for used in member.all_input_nodes if used in level), default=0)
        level[member] = before + _passes(plan, member)
    return level


def _read_for(plan: RowPlan, sink: fx.Node, at: int, written: Mapping[fx.Node, int]) -> set[fx.Node]:
    """What one pass over the rows reads to compute a member: the operands that it has without another reduction, which
    also stand for rotated rows and running sums, as XLA writes those and reads them in place of operands.

    Args:
        plan: what the member is of.
        sink: the member.
        at: which pass it is.
        written: outputs that are read in place of what they are computed of, each with the pass that writes it.
    """
    found: set[fx.Node] = set()
    pending, seen = [sink], {sink}
    while pending:
        node = pending.pop()
        if node is not sink and node in plan.region.reductions:
            continue
        if node is not sink and written.get(node, at) < at:
            found.add(node)
            continue
        for used in node.all_input_nodes:
            if (node, used) in plan.bound:
                found.add(plan.bound[node, used].node)
            elif used in plan.region.accesses and used not in seen:
                seen.add(used)
                pending.append(used)
    return found
