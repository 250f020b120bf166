"""Calls of mutating operators, whatever their form: what they write, and which of it may be fresh memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.bridge.fresh_memory import is_filled, is_undefined, origin
from tpu_lowering.bridge.fresh_operators import How
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jax_function, registry
from tpu_lowering.normalise.allocations import fills_allocations


@dataclasses.dataclass(frozen=True)
class Part:
    """A written tensor: what it is of a base.

    Attributes:
        base: the base's position.
        how: see ``fresh_operators.View``.
        numbers: what describes the view, numbers or nodes; empty for a whole base.
    """

    base: int
    how: How
    numbers: tuple[Any, ...] = ()


Parts = Part | None | tuple[Part | None, ...]


def mutated_names(overload: compat.OpOverload) -> list[str]:
    """The arguments that an operator writes to."""
    schema = compat.schema(overload)
    return [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def is_kernel(target: Any) -> bool:
    """Whether a target is an operator of a library that writes to arguments, and returns none of them."""
    return (
        isinstance(target, compat.OpOverload)
        and target.namespace not in ("aten", "prims")
        and bool(mutated_names(target))
        and all(result.alias_info is None for result in compat.schema(target).returns)
    )


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a mutating operator.

    Attributes:
        node: the call.
        overload: the operator.
        given: the arguments that it does not write, by name.
        bases: the memory that it writes, by position; None where there is none.
        parts: for each written argument, what it is of the bases.
    """

    node: fx.Node
    overload: compat.OpOverload
    given: dict[str, Any]
    bases: tuple[fx.Node | None, ...]
    parts: dict[str, Parts]

    def bases_of(self, name: str) -> list[int]:
        """Positions of the bases that a written argument is of."""
        return [part.base for part in flat(self.parts[name])]

    def result_types(self) -> list[TensorType]:
        """Types of the operator's own results."""
        count = len(compat.schema(self.overload).returns)
        value = self.node.meta["val"]
        own = value[:count] if isinstance(value, (tuple, list)) else [value] * count
        return [TensorType.of(leaf) for leaf in compat.tree_leaves(list(own)) if isinstance(leaf, torch.Tensor)]


def flat(parts: Parts) -> list[Part]:
    return [part for part in (parts if isinstance(parts, tuple) else (parts,)) if part is not None]


def parts_of(given: dict[str, Any], name: str) -> Parts:
    """What a written argument of an ``auto_functionalized_v2`` call is of its bases."""

    def one(prefix: str) -> Part | None:
        base = given[f"{prefix}_base_index"]
        if base is None:
            return None
        if f"{prefix}_slice_dim" in given:
            return Part(base, "slice", tuple(given[f"{prefix}_slice_{part}"] for part in ("dim", "start", "end")))
        if f"{prefix}_storage_offset" in given:
            sizes = (*given[f"{prefix}_size"], *given[f"{prefix}_stride"], given[f"{prefix}_storage_offset"])
            return Part(base, "strided", sizes)
        return Part(base, "whole")

    if f"_{name}_length" not in given:
        return one(f"_{name}")
    length = given[f"_{name}_length"]
    return None if length is None else tuple(one(f"_{name}_{index}") for index in range(length))


def whole_arguments(node: fx.Node, overload: compat.OpOverload, given: dict[str, Any], bound: dict[str, Any]) -> Call:
    """A call whose written arguments are its bases."""
    bases: list[fx.Node | None] = []
    parts: dict[str, Parts] = {}

    def enter(tensor: Any) -> Part | None:
        bases.append(tensor)
        return None if tensor is None else Part(len(bases) - 1, "whole")

    for name in mutated_names(overload):
        value = bound[name]
        parts[name] = tuple(map(enter, value)) if isinstance(value, (list, tuple)) else enter(value)
    return Call(node, overload, given, tuple(bases), parts)


def choose_fresh(call: Call, candidates: set[int] | None = None) -> tuple[list[str], list[Action]]:
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
    fresh = [name for name in call.parts if call.bases_of(name)]
    while True:
        kept = {base for name in call.parts if name not in fresh for base in call.bases_of(name)}
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


def _covers(call: Call, base: int) -> str:
    """How the operator's registered kernel is known to overwrite all of a base; "" if it is not."""
    found = registry.implementation(call.overload)
    every = [part for parts in call.parts.values() for part in flat(parts)]
    if found is None or any(part.how != "whole" for part in every) or len({p.base for p in every}) != len(every):
        return ""

    def tensor(part: Part | None) -> Any:
        return None if part is None else call.bases[part.base]

    written = {n: [tensor(p) for p in ps] if isinstance(ps, tuple) else tensor(ps) for n, ps in call.parts.items()}
    order = [argument.name for argument in compat.schema(call.overload).arguments]
    bound = {name: written[name] if name in written else call.given[name] for name in order}
    template, operands = arguments.split(bound, lambda value: isinstance(value, fx.Node))
    try:
        types = arguments.fill(template, [TensorType.of(operand.meta["val"]) for operand in operands])
        kernel = jax_function.specialise(found, types, call.result_types())
    except (errors.TpuLoweringError, AttributeError, TypeError):
        return ""  # sizes that are symbols, or a kernel that JAX cannot trace: nothing is known
    access = kernel.access[operands.index(call.bases[base])]
    return access.evidence if access.covers else ""
