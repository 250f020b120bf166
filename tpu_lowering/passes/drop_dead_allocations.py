"""Drop dead allocations: what nobody reads is gone; an allocation that is left says who reads it.

Before::

    e = empty_like(x)
    k = kernel_call(exp_into, (x, None))

After::

    k = kernel_call(exp_into, (x, None))
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.operators import is_allocation, makes_memory


@dataclasses.dataclass(frozen=True)
class DropDeadAllocations:
    """See the module's docstring. Every call of a normalised graph is pure, so unused ones are dead."""

    name: str = "drop_dead_allocations"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        made = {node: graphs.source_line(node) for node in graph.nodes if makes_memory(node)}
        nbytes = {node: graphs.type_of(node).nbytes for node in made}
        erased = set(graphs.eliminate_dead_code(graph))
        actions = [
            Action("removed", node.name, where, "", "nothing reads it", nbytes[node])
            for node, where in made.items()
            if node in erased
        ]
        for node in made:
            if node not in erased and is_allocation(node):
                users = ", ".join(user.name for user in node.users)
                actions.append(Action.on("kept", node, f"its undefined contents are used by {users}", "TL503"))
        return actions
