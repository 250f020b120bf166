"""Drop overwritten values: a defined buffer is not passed to a kernel that provably overwrites all of it.

Before::

    z = full([1024, 1024], 0)
    k = kernel_call(exp_into, (x, z))     # every block visited, every element stored, nothing loaded

After::

    k = kernel_call(exp_into, (x, None))

What proves it is the kernel's grid, its index maps and its body; see ``analyse.coverage`` and
``analyse.refs``. A buffer that stays is reported with the reason.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering.analyse.undefined import origin
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import Access
from tpu_lowering.ir.operators import is_fill


@dataclasses.dataclass(frozen=True)
class DropOverwrittenValues:
    """See the module's docstring."""

    name: str = "drop_overwritten_values"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        actions: list[Action] = []
        for node in graphs.kernel_calls(graph):
            kernel, operands = graphs.kernel_of(node), list(graphs.operands_of(node))
            for index in kernel.tied():
                operand, access = operands[index], kernel.access[index]
                if operand is None:
                    continue
                if access.covers:
                    actions.append(
                        Action.on("fresh", operand, f"{kernel.name} overwrites all of it: {access.evidence}")
                    )
                    operands[index] = None
                else:
                    actions.append(_kept(operand, kernel.name, access))
            graphs.set_operands(node, operands)
        return actions


def _kept(operand: fx.Node, kernel: str, access: Access) -> Action:
    code = "TL501" if access.reads else "TL505" if is_fill(origin(operand)) else "TL502"
    return Action.on("kept", operand, f"{kernel}: {access.evidence}", code)
