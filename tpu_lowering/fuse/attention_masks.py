"""Masks of an attention that depend on no input: found by computing them while the program is compiled."""

from __future__ import annotations

import dataclasses
import functools
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
        node = self.node
        while node.op == "call_function" and node.target in (aten.reshape.default, aten.expand.default):
            node = node.args[0]  # type: ignore[assignment]
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


def constant(node: fx.Node) -> torch.Tensor | None:
    """The value of a node that depends on no input and no random number; None for any other, or a large one."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        needed = waiting.pop()
        value = needed.meta.get("val")
        if needed.op not in ("call_function", "get_attr") or needed.target in (*ALLOCATIONS, kernel_call):
            return None
        if not isinstance(value, torch.Tensor) or value.numel() > MOST:
            return None
        order.pop(needed, None)
        order[needed] = None
        waiting += needed.all_input_nodes
    values: dict[fx.Node, torch.Tensor] = {}
    with torch.no_grad():
        for needed in reversed(order):
            values[needed] = _run(needed, values)
    return values[node]


def _run(node: fx.Node, values: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, str(node.target))
    args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def static_mask(terms: tuple[Term, ...], is_causal: bool, queries: int, keys: int) -> StaticMask | None:
    """The mask that terms are together, if all are constants that only hide keys, the same in every head, and leave
    each query a key; None if not. Without terms, a mask only if the attention is causal."""
    seen = np.tri(queries, keys, dtype=bool) if terms and is_causal else None
    for term in terms:
        shape = tuple(graphs.type_of(term.node).shape)
        if any(size != 1 for size in shape[:-2]) or (found := _seen(term)) is None:
            return None
        own = np.broadcast_to(found.reshape(found.shape[-2:]), (queries, keys))
        seen = own if seen is None else seen & own
    if seen is None:
        return StaticMask(queries, keys) if is_causal else None
    return StaticMask.of(seen) if seen.any(axis=1).all() else None


def _seen(term: Term) -> np.ndarray[Any, Any] | None:
    """Where a term leaves the scores as they are, at least 2-d; None if it does more than hide others."""
    value = constant(term.node)
    if value is None:
        return None
    value = torch.atleast_2d(value)
    if term.value is not None:
        return (value != term.where).numpy() if term.hides else None
    if not value.dtype.is_floating_point:
        return None
    hidden = value <= HIDDEN
    return (~hidden).numpy() if bool((hidden | (value == 0)).all()) else None
