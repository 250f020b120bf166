"""What is true of a graph from a stage on: named checks that run after every stage, always.

A check that fails is a bug of this package; the error names the stage that broke it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.types import element_type

Invariant = Callable[[fx.Graph], "str | None"]


def graph_is_well_formed(graph: fx.Graph) -> str | None:
    """Every node stands after what it uses."""
    try:
        graph.lint()
    except RuntimeError as error:
        return str(error)
    return None


def graph_is_functional(graph: fx.Graph) -> str | None:
    """No operator writes to its arguments."""
    for node in graph.nodes:
        schema = compat.schema(node.target)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            return f"{node.name} calls {node.target}, which writes to its arguments"
    return None


def values_have_types(graph: fx.Graph) -> str | None:
    """Every tensor has a concrete shape and a dtype that JAX has."""
    for node in graph.nodes:
        for leaf in compat.tree_leaves(node.meta.get("val") if node.op != "output" else None):
            if isinstance(leaf, torch.Tensor):
                if not all(type(size) is int for size in leaf.shape):
                    return f"{node.name} has the symbolic shape {tuple(leaf.shape)}"
                if element_type(leaf.dtype) is None:
                    return f"{node.name} has dtype {leaf.dtype}"
    return None


def kernel_calls_match_kernels(graph: fx.Graph) -> str | None:
    """Operands and results of every kernel call are of the kernel's types; only written ones may be fresh."""
    for node in graphs.kernel_calls(graph):
        kernel, operands = graphs.kernel_of(node), graphs.operands_of(node)
        if len(operands) != len(kernel.operands):
            return f"{node.name} passes {len(operands)} operands to {kernel.name}, which takes {len(kernel.operands)}"
        for operand, slot in zip(operands, kernel.operands, strict=True):
            if operand is None and slot.result is None:
                return f"{node.name} makes the read-only operand '{slot.name}' of {kernel.name} fresh"
            if operand is not None and graphs.type_of(operand) != slot.type:
                return f"{node.name} passes {graphs.type_of(operand)} as '{slot.name}', which is {slot.type}"
    return None


def calls_are_normal(graph: fx.Graph) -> str | None:
    """No call form of kernels is left but ``kernel_call``."""
    for node in graph.nodes:
        name = str(node.target)
        if (
            node.op == "call_function"
            and ("auto_functionalized" in name or "helion" in name)
            and node.target is not kernel_call
        ):
            return f"{node.name} is a call of {name}"
    return None


CAPTURED: tuple[Invariant, ...] = (graph_is_well_formed,)
SPECIALISED: tuple[Invariant, ...] = (*CAPTURED, values_have_types)
NORMAL: tuple[Invariant, ...] = (*SPECIALISED, graph_is_functional, calls_are_normal, kernel_calls_match_kernels)


def check(graph: fx.Graph, invariants: tuple[Invariant, ...], stage: str) -> None:
    """Checks invariants after a stage.

    Raises:
        TpuLoweringError: TL402, naming the invariant and the stage.
    """
    for invariant in invariants:
        broken = invariant(graph)
        if broken is not None:
            raise errors.refuse(
                "TL402",
                f"{invariant.__name__} after {stage}",
                f"expected: {(invariant.__doc__ or '').strip().splitlines()[0]} Got: {broken}",
                "this is a bug of tpu_lowering; please report it with the output of options={'dump': 'folder'}",
            )
