"""Functional kernels: a pass for the graphs of other backends, which takes out allocations that kernels overwrite.

Before::

    e = empty([8, 4])
    k = auto_functionalized_v2(ns.exp_into, x=x, _out_base_index=0, _all_bases=[e])
    out = getitem(k, 1)

After::

    out = tpu_lowering.ns_exp_into_fresh_out(x, size_0=[8, 4], ...)     # allocates, and calls ns.exp_into

It is no part of the pipeline, which takes a whole graph to one program, and needs a JAX implementation of whatever is
in it. Here the graph stays what it is, ATen with sizes that may be symbols, for a compiler that runs kernels as
operators. Only a call's neighbourhood changes: what it was given to write, and who takes its results.

Memory that a call was given becomes fresh if its old contents are undefined, whatever the operator does. With defined
contents it does where the kernel registered for the operator provably overwrites all of it, and they are a fill, or
others use them too, so that a copy would be made. Anything in doubt stays.
"""

from __future__ import annotations

import logging

from torch import fx

from tpu_lowering import errors
from tpu_lowering.bridge import functional_forms, functional_helion, mutating_calls
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.functionalized_calls import is_functionalized

log = logging.getLogger("tpu_lowering.passes")


def apply(graph: fx.GraphModule | fx.Graph) -> fx.GraphModule:
    """Removes allocations and fills that only kernels overwrite, in place; see the module's docstring.

    A pass for any backend that works on graphs from AOTAutograd: to call in the ``fw_compiler`` and ``bw_compiler`` of
    ``aot_autograd``, or to set as Inductor's ``post_grad_custom_pre_pass``. Kernels are Helion kernels, and operators
    with ``mutates_args`` of any library. A graph that was not through AOTAutograd is left as it is.

    Args:
        graph: a graph of ATen operators with ``meta["val"]``, or its module.

    Returns:
        The module of the graph.

    Raises:
        TpuLoweringError: TL112 for anything else.
    """
    module = graph if isinstance(graph, fx.GraphModule) else getattr(graph, "owning_module", None)
    if not isinstance(module, fx.GraphModule):
        got = "one without a module" if isinstance(graph, fx.Graph) else type(graph).__name__
        raise errors.wrong_argument(
            "graph", f"a torch.fx.GraphModule, or the graph of one, got {got}", "passes.apply(module)"
        )
    for action in make_kernels_functional(module.graph):
        log.info("functional_kernels: %s %s: %s %s", action.kind, action.node, action.reason, action.where)
    module.recompile()
    return module


def make_kernels_functional(graph: fx.Graph) -> list[Action]:
    """The pass itself; see ``apply``."""
    actions: list[Action] = []
    for node in list(graph.nodes):
        if "val" not in node.meta or node.op != "call_function":
            continue
        if is_functionalized(node):
            actions += functional_forms.rewrite_functionalized(graph, node)
        elif mutating_calls.is_kernel(node.target):
            actions += functional_forms.rewrite_mutable(graph, node)
        elif functional_helion.is_helion_call(node):
            actions += functional_helion.rewrite_helion(graph, node)
    return actions
