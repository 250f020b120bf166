"""Calls of Helion kernels in graphs of other backends, rewritten: see ``functional_kernels``.

Before::

    e = empty_like(x)
    k = helion_kernel_wrapper_functional(kernel_idx, tensor_args={'x': x, 'out': e}, tensors_to_clone=['out'])
    out = getitem(getitem(k, 1), 'out')

After::

    out = tpu_lowering.helion_exp_into_fresh_out([x], size_0=[8, 4], ...)
"""

from __future__ import annotations

from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.bridge.fresh_helion import HelionCall, fresh_helion_operator
from tpu_lowering.bridge.fresh_memory import Memory, erase_dead, is_undefined, memory_of, origin
from tpu_lowering.bridge.functional_forms import described, results_of
from tpu_lowering.bridge.mutating_calls import fresh_action
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.normalise.allocations import fills_allocations


def is_helion_call(node: fx.Node) -> bool:
    """Whether a node is the functional form of a Helion kernel's call."""
    return "helion" in str(node.target) and compat.has_helion() and node.target is compat.helion_operators()[1]


def rewrite_helion(graph: fx.Graph, node: fx.Node) -> list[Action]:
    """Rewrites a call that is given undefined memory to write; returns what was done."""
    given: dict[str, Any] = dict(node.kwargs)
    tensors: dict[str, fx.Node] = dict(given["tensor_args"])
    mutated: tuple[str, ...] = tuple(given["tensors_to_clone"])
    # Results whose sizes are symbols are described by nodes, which an operator's own code cannot hold.
    if any(isinstance(leaf, fx.Node) for leaf in compat.tree_leaves((given["constant_args"], given["output_spec"]))):
        return []
    origins = [origin(tensor) for tensor in tensors.values()]
    with graphs.inserting_for(node):
        memories: dict[str, Memory] = {}
        for name in mutated:
            base = tensors.get(name)
            if base is None or not is_undefined(base, fills_allocations()) or origins.count(origin(base)) > 1:
                continue
            if (memory := memory_of(graph, base)) is not None:
                memories[name] = memory
        if not memories or len(memories) == len(tensors):
            return []
        spec = {key: given["output_spec"][key] for key in given["output_spec"]}
        call = HelionCall(
            given["kernel_idx"], dict(given["constant_args"]), tuple(tensors), spec, mutated, tuple(memories)
        )
        kept = [tensor for name, tensor in tensors.items() if name not in memories]
        new = graphs.call(graph, fresh_helion_operator(call), kept, **described(list(memories.values())))
        results = results_of(graph, new, call.results + len(mutated))
    actions = [
        fresh_action(tensors[name], f"{compat.helion_kernel(call.index).name} is given undefined memory to write")
        for name in memories
    ]
    values = dict(zip(mutated, results[call.results :], strict=True))
    for part in list(node.users):
        for user in list(part.users):
            key: Any = user.args[1]
            graphs.replace(user, results[key] if part.args[1] == 0 else values[key])
        graph.erase_node(part)
    graph.erase_node(node)
    erase_dead([tensors[name] for name in memories])
    return actions
