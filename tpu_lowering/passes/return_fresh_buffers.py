"""Return fresh buffers: a kernel that is given undefined memory to write allocates it itself.

Before::

    e = empty_like(x)
    k = kernel_call(exp_into, (x, e))
    out = getitem(k, 0)

After::

    k = kernel_call(exp_into, (x, None))
    out = getitem(k, 0)

It does not matter who else uses the allocation: the graph is functional, so its other users see the same
undefined memory as before.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering.analyse.undefined import undefined_values
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action


@dataclasses.dataclass(frozen=True)
class ReturnFreshBuffers:
    """See the module's docstring."""

    name: str = "return_fresh_buffers"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        undefined = undefined_values(graph)
        actions: list[Action] = []
        for node in graphs.kernel_calls(graph):
            kernel, operands = graphs.kernel_of(node), graphs.operands_of(node)
            for index in kernel.tied():
                access = kernel.access[index]
                if (operand := operands[index]) is not None and not access.writes:
                    reason = f"{kernel.name} leaves '{kernel.operands[index].name}' as it is: {access.evidence}"
                    actions.append(Action.on("unwritten", operand, reason, "TL508"))
            fresh = [index for index in kernel.tied() if operands[index] in undefined]
            for index in fresh:
                operand = operands[index]
                assert operand is not None
                access = kernel.access[index]
                if access.reads:
                    reason = (
                        f"{kernel.name} may load '{kernel.operands[index].name}' before storing it: {access.evidence}"
                    )
                    actions.append(Action.on("fresh", operand, reason, "TL504"))
                else:
                    reason = f"{kernel.name} only writes '{kernel.operands[index].name}': {access.evidence}"
                    actions.append(Action.on("fresh", operand, reason))
            graphs.set_operands(node, [None if index in fresh else operand for index, operand in enumerate(operands)])
        return actions
