"""Calls of mutating operators in graphs of other backends, rewritten: see ``functional_kernels``.

===========================================  ==========================================================================
``auto_functionalized_v2(op, ...)``          bases, and views of them as arguments
``auto_functionalized(op, ...)``             the arguments themselves are the bases
``op(x, out)``                               after functionalisation was undone; ``out`` is an allocation, used by the
                                             call before anything else
===========================================  ==========================================================================
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.bridge.fresh_memory import Memory, erase_dead, memory_of
from tpu_lowering.bridge.fresh_operators import FreshForm, fresh_operator
from tpu_lowering.bridge.mutating_calls import choose_fresh, is_kernel
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.functionalized_calls import (
    BaseView,
    MutatingCall,
    decoded,
    flat,
    mapped,
    mutated_names,
    of_arguments,
)
from tpu_lowering.ir.operators import is_allocation


def rewrite_functionalized(graph: fx.Graph, node: fx.Node) -> list[Action]:
    """Rewrites an ``auto_functionalized`` call, if it is given memory that may be fresh; returns what was done."""
    overload = node.args[0]
    if not isinstance(overload, compat.OpOverload) or not is_kernel(overload) or torch.Tag.out in overload.tags:
        return []
    call = decoded(node)
    names = list(call.views)
    fresh, actions = choose_fresh(call)
    if not fresh or (node.target is compat.auto_functionalized and len(fresh) != len(names)):
        return []
    with graphs.inserting_for(node):
        inserted = _insert(graph, call, fresh)
        if inserted is None:
            return []
        new, order = inserted
        own = len(compat.schema(overload).returns)
        if len(fresh) == len(names):
            results = results_of(graph, new, own + len(order))
            rest: list[fx.Node] = []
        else:
            count = own + len(order)
            results = [graphs.call(graph, operator.getitem, new, index) for index in range(len(new.meta["val"]))]
            results, rest = results[:count], results[count:]
        made, left = iter(results[own:]), iter(rest)
        by_base = {base: next(made) for base in order}
        new_bases = [None if b is None else by_base.get(i) or next(left) for i, b in enumerate(call.bases)]
    _send(node, [*(results[:own] or [None]), *call.returned(new_bases)])
    erase_dead([base for base in call.bases if base is not None])
    return actions


def rewrite_mutable(graph: fx.Graph, node: fx.Node) -> list[Action]:
    """Rewrites a call that writes to allocations, each used by it first; returns what was done."""
    overload: Any = node.target
    bound = graphs.bound(node)
    names = mutated_names(overload)
    given = {name: value for name, value in bound.items() if name not in names}
    call = of_arguments(node, overload, given, bound)
    placed = {other: at for at, other in enumerate(graph.nodes)}

    def is_first(base: fx.Node | None) -> bool:
        users = [] if base is None else sorted(base.users, key=placed.__getitem__)
        return bool(users) and users[0] is node and is_allocation(base) and call.bases.count(base) == 1

    fresh, actions = choose_fresh(call, {at for at, base in enumerate(call.bases) if is_first(base)})
    if not fresh:
        return []
    with graphs.inserting_for(node):
        inserted = _insert(graph, call, fresh, mutable=True)
        if inserted is None:
            return []
        new, order = inserted
        own = len(compat.schema(overload).returns)
        results = results_of(graph, new, own + len(order))
    for base, value in zip(order, results[own:], strict=True):
        old = call.bases[base]
        assert old is not None
        old.replace_all_uses_with(value, delete_user_cb=lambda user: user is not node)
    if own == 1:
        graphs.replace(node, results[0])
    else:
        _send(node, results[:own])
    erase_dead([base for base in call.bases if base is not None])
    return actions


def _insert(
    graph: fx.Graph, call: MutatingCall, fresh: Sequence[str], mutable: bool = False
) -> tuple[fx.Node, list[int]] | None:
    """Inserts the call of the operator that allocates; returns it and the bases it returns, in order.

    None if it cannot be: memory that has no description, or no tensor left to say where the operator runs.
    """
    order = sorted({at for name in fresh for at in call.bases_of(name)})
    number = {base: index for index, base in enumerate(order)}
    left = [name for name in call.views if name not in fresh and call.bases_of(name)]
    tensors = [leaf for leaf in compat.tree_leaves(call.given) if isinstance(leaf, fx.Node)]
    if not left and not any(isinstance(node.meta["val"], torch.Tensor) for node in tensors):
        return None
    memories: list[Memory] = []
    for at in order:
        base = call.bases[at]
        memory = None if base is None else memory_of(graph, base)
        if memory is None:
            return None
        memories.append(memory)

    def view(given: BaseView) -> BaseView:
        return BaseView(number[given.base], given.how)

    chosen = {name: views for name, views in call.views.items() if name in fresh}
    views = {name: mapped(given, view) for name, given in chosen.items()}
    views = {name: tuple(made) if isinstance(made, list) else made for name, made in views.items()}
    target = fresh_operator(FreshForm(call.overload, tuple(views.items()), len(order)))
    every = [view for views in chosen.values() for view in flat(views)]
    keywords = described(memories)
    keywords |= {f"view_{i}": list(one.numbers) for i, one in enumerate(every) if one.how != "whole"}
    if left and not mutable:
        return graphs.call(
            graph, compat.auto_functionalized_v2, target, **_still_written(call, fresh), **keywords
        ), order
    every = dict(call.given)
    if mutable:
        every |= {name: graphs.bound(call.node)[name] for name in call.views if name not in fresh}
    positional, named = [], {}
    for argument in compat.schema(target).arguments:
        if argument.name in every:
            if argument.kwarg_only:
                named[argument.name] = every[argument.name]
            else:
                positional.append(every[argument.name])
    return graphs.call(graph, target, *positional, **named, **keywords), order


def described(memories: Sequence[Memory]) -> dict[str, Any]:
    """The arguments that describe memory to allocate."""
    described: dict[str, Any] = {}
    for index, memory in enumerate(memories):
        described[f"size_{index}"] = list(memory.size)
        described[f"stride_{index}"] = None if memory.stride is None else list(memory.stride)
        described[f"dtype_{index}"] = memory.dtype
        described[f"device_{index}"] = memory.device
    return described


def _still_written(call: MutatingCall, fresh: Sequence[str]) -> dict[str, Any]:
    """The arguments of the functionalised call that are left: bases that are not fresh, numbered anew."""
    gone = {at for name in fresh for at in call.bases_of(name)}
    left = [at for at in range(len(call.bases)) if at not in gone]
    renumbered = {at: index for index, at in enumerate(left)}
    given = dict(call.given)
    for name in call.views:
        given |= call.encoded(name, renumbered) if name not in fresh else {}
    return {**given, "_all_bases": [call.bases[at] for at in left]}


def results_of(graph: fx.Graph, call: fx.Node, count: int) -> list[fx.Node]:
    """The results of an operator as nodes."""
    return [call] if count == 1 else [graphs.call(graph, operator.getitem, call, index) for index in range(count)]


def _send(node: fx.Node, results: Sequence[Any]) -> None:
    """Sends the users of a call, each a ``getitem``, to its new results, and erases it."""
    for user in list(node.users):
        assert graphs.is_call(user, operator.getitem)
        result = results[user.args[1]]  # type: ignore[index]
        if isinstance(result, list):
            _send(user, result)
        else:
            if result is not None:
                user.replace_all_uses_with(result)
            user.graph.erase_node(user)
    node.graph.erase_node(node)
