"""Fuse long rows: reductions of rows that fit VMEM in no block become kernels that add up blocks of a row.

Before::

    amax = aten.amax(x, [1], True)
    sum = aten.sum(aten.exp(aten.sub(x, amax)), [1], True)

After::

    k = kernel_call(amax_sum_long_rows, (x,))
    amax, sum = getitem(k, 0), getitem(k, 1)

XLA reads ``x`` once for each reduction that waits for another; one pass over the blocks of a row is enough for both.
Regions are those that ``FuseRows`` left because their rows are too long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx

from tpu_lowering.fuse.choose.choices import Chooser
from tpu_lowering.fuse.fuse_rows import TOO_LONG
from tpu_lowering.fuse.long_rows.block_graph import RunningBody
from tpu_lowering.fuse.long_rows.kernel_source import write_pass
from tpu_lowering.fuse.long_rows.passes import one_pass_each, pass_plan
from tpu_lowering.fuse.long_rows.take_apart import take_apart
from tpu_lowering.fuse.replace_by_kernel import Form, replace_by_kernel
from tpu_lowering.fuse.rows.planning import computed
from tpu_lowering.fuse.space.row_regions import find_regions
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

NO_PASS = "and one pass over blocks of rows would move no fewer bytes"
"""Why rows without a block stay XLA's."""

LONG_ROWS = Form(write_pass, lambda found, whole: RunningBody(found, whole).graph, "long_rows", False)  # type: ignore[arg-type]
"""Kernels that add up blocks of a row."""


@dataclasses.dataclass(frozen=True)
class FuseLongRows:
    """See the module's docstring.

    Attributes:
        chooser: as ``FuseRows``'s.
    """

    chooser: Chooser | None = None
    name: str = "fuse_long_rows"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        regions: dict[int, tuple[Action, list[fx.Node]]] = {}
        for node in graph.nodes:
            refusal = node.meta.pop(TOO_LONG, None)
            if refusal is not None:
                regions.setdefault(id(refusal), (refusal, []))[1].append(node)
        actions = [action for region in regions.values() for action in self._fuse(graph, *region)]
        graphs.sort_by_use(graph)
        graphs.eliminate_dead_code(graph)
        return actions

    def _fuse(self, graph: fx.Graph, refusal: Action, members: Sequence[fx.Node]) -> list[Action]:
        """Makes a kernel of each pass over the blocks of long rows that spares XLA some.

        Returns:
            What was done, or why nothing was.
        """
        graphs.sort_by_use(graph)
        parts = take_apart(graph, members)
        actions: list[Action] = []
        for region in [region for region in find_regions(graph) if region.rows and parts & set(region.accesses)]:
            left = [member for member in computed(region) if not region.waits(member)]
            for reductions in one_pass_each(region, left):
                found = pass_plan(region, left, reductions)
                if found is not None:
                    actions.append(replace_by_kernel(graph, found, {}, self.chooser, LONG_ROWS))
        return actions or [dataclasses.replace(refusal, reason=f"{refusal.reason}, {NO_PASS}")]
