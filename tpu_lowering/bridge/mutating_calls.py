"""Calls of mutating operators: which of what they write may be fresh memory."""

from __future__ import annotations

from typing import Any

from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.bridge.fresh_memory import is_filled, is_undefined, origin
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.functionalized_calls import MutatingCall, mutated_names
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jax_function, registry
from tpu_lowering.normalise.allocations import fills_allocations


def is_kernel(target: Any) -> bool:
    """Whether a target is an operator of a library that writes to arguments, and returns none of them."""
    return (
        isinstance(target, compat.OpOverload)
        and target.namespace not in ("aten", "prims")
        and bool(mutated_names(target))
        and all(result.alias_info is None for result in compat.schema(target).returns)
    )


def choose_fresh(call: MutatingCall, candidates: set[int] | None = None) -> tuple[list[str], list[Action]]:
    """The written arguments whose memory the operator may allocate itself, and why.

    An argument that is a list is fresh as a whole, and so is a base: all arguments that are of it.

    Args:
        call: the call.
        candidates: positions of the bases that may be fresh; None for all.
    """
    fills = fills_allocations()
    read = {origin(leaf) for leaf in compat.tree_leaves(call.given) if isinstance(leaf, fx.Node)}
    reasons: dict[int, str] = {}
    for at, base in enumerate(call.bases):
        if base is None or (candidates is not None and at not in candidates) or origin(base) in read:
            continue  # an operand in the memory that is written: eager shows it what is written
        if is_undefined(base, fills):
            reasons[at] = f"{call.overload} is given undefined memory to write"
        elif _costs(base, fills) and (evidence := _covers(call, at)):
            reasons[at] = f"{call.overload} overwrites all of it: {evidence}"
    fresh = [name for name in call.views if call.bases_of(name)]
    while True:
        kept = {base for name in call.views if name not in fresh for base in call.bases_of(name)}
        still = [name for name in fresh if all(at in reasons and at not in kept for at in call.bases_of(name))]
        if still == fresh:
            break
        fresh = still
    chosen = sorted({at for name in fresh for at in call.bases_of(name)})
    return fresh, [fresh_action(call.bases[at], reasons[at]) for at in chosen]


def _costs(base: fx.Node, fills: bool) -> bool:
    """Whether defined memory costs something that fresh memory does not: a fill, or a copy, because its old contents
    are used by others too. An input is updated in place."""
    used_elsewhere = len(base.users) > 1 and origin(base).op != "placeholder"
    return is_filled(base, fills) or used_elsewhere


def fresh_action(base: fx.Node | None, reason: str) -> Action:
    """The action of a pass that made a base fresh."""
    assert base is not None
    value = base.meta["val"]
    known = all(type(size) is int for size in value.shape)
    nbytes = value.numel() * value.element_size() if known else 0
    return Action("fresh", base.name, graphs.source_line(base), "", reason, nbytes)


def _covers(call: MutatingCall, base: int) -> str:
    """How the operator's registered kernel is known to overwrite all of a base; "" if it is not."""
    found = registry.implementation(call.overload)
    every = call.every_view()
    if found is None or any(view.how != "whole" for view in every) or len({v.base for v in every}) != len(every):
        return ""
    bound = call.arguments(lambda view: call.bases[view.base])
    template, operands = arguments.split(bound, lambda value: isinstance(value, fx.Node))
    try:
        types = arguments.fill(template, [TensorType.of(operand.meta["val"]) for operand in operands])
        kernel = jax_function.specialise(found, types, call.result_types())
    except (errors.TpuLoweringError, AttributeError, TypeError):
        return ""  # sizes that are symbols, or a kernel that JAX cannot trace: nothing is known
    access = kernel.access[operands.index(call.bases[base])]
    return access.evidence if access.covers else ""
