"""Masks of an attention that depend on no input: found by computing them while the program is compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.operators import ALLOCATIONS

aten = torch.ops.aten

HIDDEN = torch.finfo(torch.bfloat16).min
"""What a score is at most, or has added, if its key is hidden: beside any key that is not, it has no weight."""
MOST = 1 << 26
"""Elements of the largest mask that is computed while compiling: 8192 queries by 8192 keys."""


@dataclasses.dataclass(frozen=True)
class StaticMask:
    """Which keys each query sees, the same in every head.

    Attributes:
        queries, keys: the mask's shape.
        bits: rows of the mask, packed as ``numpy.packbits`` does; b"" for a causal mask, in which query ``i`` sees
            the keys 0 to ``i``.
    """

    queries: int
    keys: int
    bits: bytes = b""

    @property
    def is_causal(self) -> bool:
        return not self.bits

    @staticmethod
    def of(seen: np.ndarray[Any, Any]) -> StaticMask:
        """A mask from a bool array [queries, keys]."""
        queries, keys = seen.shape
        if np.array_equal(seen, np.tri(queries, keys, dtype=bool)):
            return StaticMask(queries, keys)
        return StaticMask(queries, keys, np.packbits(seen).tobytes())

    @functools.cached_property
    def array(self) -> np.ndarray[Any, Any]:
        """bool [queries, keys]: True where the query sees the key."""
        if self.is_causal:
            return np.tri(self.queries, self.keys, dtype=bool)
        packed = np.frombuffer(self.bits, np.uint8)
        return np.unpackbits(packed, count=self.queries * self.keys).reshape(self.queries, self.keys).astype(bool)

    @property
    def seen(self) -> int:
        """How many pairs of a query and a key it leaves."""
        if not self.is_causal:
            return int(self.array.sum())
        full = min(self.queries, self.keys)
        return full * (full + 1) // 2 + (self.queries - full) * self.keys


@dataclasses.dataclass(frozen=True)
class Term:
    """What one node does to the scores.

    Attributes:
        node: a tensor that broadcasts with the scores.
        value: None if it is added to the scores. Else the node is bool, and scores become this value ...
        where: ... at its elements of this truth.
    """

    node: fx.Node
    value: float | None = None
    where: bool = True

    @property
    def hides(self) -> bool:
        """Whether it is seen to do nothing but hide keys."""
        if self.value is not None:
            return self.value <= HIDDEN
        node: Any = self.node
        while node.op == "call_function" and node.target in (aten.reshape.default, aten.expand.default):
            node = node.args[0]
        if not graphs.is_call(node, aten.where.self):
            return False
        given = [number(arg) for arg in node.args[1:]]
        return all(value is not None and (value == 0 or value <= HIDDEN) for value in given)


def number(value: Any) -> float | None:
    """The value of a number, or of a constant tensor of one element; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node) or graphs.type_of(value).size != 1:
        return None
    found = constant(value)
    return None if found is None else float(found)


def constant_nodes(node: fx.Node) -> list[fx.Node]:
    """A node and all that it is computed from, in that order; [] if an input, a random or a large value is among it."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        needed = waiting.pop()
        value = needed.meta.get("val")
        if needed.op not in ("call_function", "get_attr") or needed.target in (*ALLOCATIONS, kernel_call):
            return []
        if not isinstance(value, torch.Tensor) or value.numel() > MOST:
            return []
        if torch.Tag.nondeterministic_seeded in getattr(needed.target, "tags", ()):
            return []
        order.pop(needed, None)
        order[needed] = None
        waiting += needed.all_input_nodes
    return list(order)


def constant(node: fx.Node) -> torch.Tensor | None:
    """The value of a node that depends on no input and no random number; None for any other, or a large one."""
    order = constant_nodes(node)
    if not order:
        return None
    values: dict[fx.Node, torch.Tensor] = {}
    with torch.no_grad():
        for needed in reversed(order):
            values[needed] = _run(needed, values)
    return values[node]


def _run(node: fx.Node, values: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, str(node.target))
    args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    on_cpu = {"device": torch.device("cpu")} if "device" in kwargs else {}
    return node.target(*args, **{**kwargs, **on_cpu})  # type: ignore[operator]


def split(
    terms: Sequence[Term], is_causal: bool, queries: int, keys: int
) -> tuple[StaticMask | None, tuple[Term, ...]]:
    """The part of a mask that is known, and the terms that are left to compute.

    A known part is the same in every head and leaves each query a key. Beside terms that are left it is a causal mask
    or none, as the kernel that adds biases knows no other; and one of -inf, as a query that is left no key sees those
    with a finite score.

    Returns:
        (None if nothing is known to hide a key, the other terms).
    """
    causal = StaticMask(queries, keys) if is_causal else None
    found = [(term, _hidden(term)) for term in terms]
    rest = tuple(term for term, hidden in found if hidden is None)
    known = [hidden for _, hidden in found if hidden is not None]
    if not known:
        return causal, rest
    shown = [np.tri(queries, keys, dtype=bool)] if is_causal else []
    seen = np.logical_and.reduce([*shown, *(np.broadcast_to(hidden == 0, (queries, keys)) for hidden in known)])
    mask = StaticMask.of(seen) if seen.any(axis=1).all() else None
    is_exact = mask is not None and mask.is_causal and all(np.isin(hidden, (0, -np.inf)).all() for hidden in known)
    if mask is None or (rest and not is_exact):
        return causal, tuple(terms)
    return mask, rest


def _hidden(term: Term) -> np.ndarray[Any, Any] | None:
    """What a constant term adds to the scores of every head, float [.., ..]: 0, or what hides a key; None if it does
    anything else."""
    leading = tuple(graphs.type_of(term.node).shape)[:-2]
    found = constant(term.node) if all(size == 1 for size in leading) else None
    if found is None:
        return None
    value: Any = found
    if term.value is not None:
        value = torch.where(value == term.where, term.value, 0.0)
    if not value.dtype.is_floating_point or not bool(((value <= HIDDEN) | (value == 0)).all()):
        return None
    return torch.atleast_2d(value.double()).flatten(0, -2).numpy()
