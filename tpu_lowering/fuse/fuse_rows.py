"""Fuse rows: a region that reduces rows and uses them again becomes one kernel call.

Before::

    amax = aten.amax(x, [-1], True)
    sub = aten.sub(x, amax)
    exp = aten.exp(sub)
    sum = aten.sum(exp, [-1], True)
    div = aten.div(exp, sum)

After::

    k = kernel_call(amax_sum_rows, (x,))
    div = getitem(k, 0)

XLA reads ``x`` three times for this; the kernel reads it once, row by row. A region that one kernel would not run in
fewer bytes stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx

from tpu_lowering.fuse.choose.choices import Chooser
from tpu_lowering.fuse.replace_by_kernel import replace_by_kernel
from tpu_lowering.fuse.rows.plans_of_graph import plans_of
from tpu_lowering.fuse.space.row_plans import RowPlan
from tpu_lowering.fuse.xla.kept_in_vmem import is_held
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

TOO_LONG = "rows_too_long"
"""Key of a node's metadata: the refusal of the region that it belongs to, whose rows fit VMEM in no block."""


@dataclasses.dataclass(frozen=True)
class FuseRows:
    """See the module's docstring.

    Attributes:
        chooser: chooses between XLA's form and kernels of several block sizes; None takes the default blocks.
    """

    chooser: Chooser | None = None
    name: str = "fuse_rows"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        replaced: dict[fx.Node, fx.Node] = {}
        actions = [self._fuse_first(graph, plans, replaced) for plans in plans_of(graph)]
        graphs.sort_by_use(graph)
        graphs.eliminate_dead_code(graph)
        return [action for action in actions if action is not None]

    def _fuse_first(self, graph: fx.Graph, plans: Sequence[RowPlan], replaced: dict[fx.Node, fx.Node]) -> Action | None:
        """Makes a kernel of the first plan that can be one.

        Returns:
            What was done, or why it was not; None for rows that are too long, which are left to ``FuseLongRows``.
        """
        first, *others = plans
        action = replace_by_kernel(graph, first.after(replaced), replaced, self.chooser)
        if others and action.kind != "fused" and not is_held(first, graphs.chip(graph)):
            return self._fuse_first(graph, others, replaced)
        if action.code == "TL607" and first.region.rows and not first.products:
            for member in first.members:
                member.meta[TOO_LONG] = action
            return None
        return action
