"""Masks of an attention that depend on no input: found by computing them while the program is compiled."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.operators import ALLOCATIONS
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

HIDDEN = torch.finfo(torch.bfloat16).min
"""What a score is at most, or has added, if its key is hidden: beside any key that is not, it has no weight."""
LARGE = -1e8
"""Beside a number as large in a score, what else is in it is lost in float32."""
SMALL = 1 << 16
"""Elements of the largest mask that is computed to see whether it is one at all."""
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

    @functools.cached_property
    def digest(self) -> bytes:
        """Equal for equal masks: what is kept by a mask does not keep the mask."""
        return hashlib.sha256(b"%d %d " % (self.queries, self.keys) + self.bits).digest()

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


def lengthened(mask: StaticMask | None, lengths: tuple[int, int], longer: tuple[int, int]) -> StaticMask | None:
    """A mask for rounded lengths of queries and keys: keys that are added are hidden from queries that are not."""
    if lengths == longer or (mask is None and lengths[1] == longer[1]):
        return mask
    if mask is not None and mask.is_causal and lengths[0] <= lengths[1]:
        return StaticMask(*longer)
    seen = np.ones(lengths, bool) if mask is None else mask.array
    rows = np.pad(seen, ((0, longer[0] - lengths[0]), (0, 0)), mode="edge")
    return StaticMask.of(np.pad(rows, ((0, 0), (0, longer[1] - lengths[1]))))


@dataclasses.dataclass(frozen=True)
class Term:
    """What one node does to the scores.

    Attributes:
        node: a tensor that broadcasts with the scores.
        value: None if it is added to the scores. Else the node is bool, and scores become this value ...
        where: ... at its elements of this truth.
        adds: whether scores have the value added there, instead.
    """

    node: fx.Node
    value: float | None = None
    where: bool = True
    adds: bool = False

    @property
    def added(self) -> tuple[float, ...] | None:
        """What it may add to a score, if it is one of two known numbers."""
        if self.value is not None:
            return 0.0, self.value
        node: Any = self.node
        while node.op == "call_function" and node.target in RESHAPES:
            node = node.args[0]
        return None if (chosen := chosen_of(node)) is None else chosen[1:]

    @property
    def hides(self) -> bool:
        """Whether it is seen to do nothing but hide keys."""
        return self.added is not None and all(value == 0 or value <= HIDDEN for value in self.added)

    @property
    def may_exclude(self) -> bool:
        """Whether it may add -inf, so that a query may be left no key."""
        return self.added is None or -math.inf in self.added

    @property
    def may_outweigh(self) -> bool:
        """Whether it may add a finite number that is large, beside which the scores of a query are all the same."""
        return self.added is None or any(-math.inf < value <= LARGE for value in self.added)

    def is_along_keys(self, groups: int) -> bool:
        """Whether it is the same for all queries, and for ``groups`` heads that share keys."""
        shape = graphs.type_of(self.node).shape
        return all(size == 1 for size in shape[-2:-1]) and (groups == 1 or all(size == 1 for size in shape[-3:-2]))


Known = dict[Term, np.ndarray[Any, Any] | None]
"""For terms that were looked at, what they add to every head, float [queries or 1, keys or 1]; None if unknown."""


def number(value: Any) -> float | None:
    """The value of a number, or of a constant tensor of one element; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node) or graphs.type_of(value).size != 1:
        return None
    found = constant(value)
    return None if found is None else float(found)


def constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on no input and no random number, but for large ones and what is made of those."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_computed(node) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_computed(node: fx.Node) -> bool:
    """Whether a node is a tensor that it takes nothing but other nodes to know."""
    value = node.meta.get("val")
    is_call = node.op in ("call_function", "get_attr") and node.target not in (*ALLOCATIONS, kernel_call)
    is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return is_call and not is_random and isinstance(value, torch.Tensor) and value.numel() <= MOST


def constant(node: fx.Node) -> torch.Tensor | None:
    """The value of a node that depends on no input and no random number; None for any other, or a large one."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        needed = waiting.pop()
        if not _is_computed(needed):
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
    on_cpu = {"device": torch.device("cpu")} if "device" in kwargs else {}
    return node.target(*args, **{**kwargs, **on_cpu})  # type: ignore[operator]


CHOOSING = (*IDENTITIES, aten.expand.default, aten._to_copy.default, aten.where.self, aten.masked_fill.Scalar)
"""The operators of a tensor that holds one of two numbers."""


def parts(term: Term) -> tuple[Term, ...]:
    """Terms that do together what one does, each of fewer sizes: what a mask is combined and expanded of."""
    found = _taken_apart(term)
    return (term,) if found is None else tuple(part for one in found for part in parts(one))


def computed(term: Term) -> Iterator[fx.Node]:
    """The nodes that make a term of its parts."""
    found = _taken_apart(term)
    if found is None:
        return
    behind = {one.node for one in found}
    waiting = [term.node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [used for used in node.all_input_nodes if used.target in CHOOSING and used not in behind]
    for one in found:
        yield from computed(one)


def _taken_apart(term: Term) -> Sequence[Term] | None:
    node, args = term.node, cast(Any, term.node.args)
    if node.op != "call_function":
        return None
    if node.target in (*IDENTITIES, aten.expand.default) or _adds_ones(node):
        return [dataclasses.replace(term, node=args[0])]
    if term.value is None:
        if node.target is aten.add.Tensor and not node.kwargs and all(isinstance(arg, fx.Node) for arg in args):
            return [Term(args[0]), Term(args[1])]
        return _hiding(node)
    if node.target in (aten.bitwise_not.default, aten.logical_not.default) and _is_bool(args[0]):
        return [dataclasses.replace(term, node=args[0], where=not term.where)]
    both = (aten.bitwise_or.Tensor, aten.logical_or.default)
    if not term.where:
        both = (aten.bitwise_and.Tensor, aten.logical_and.default)
    if node.target in both and all(map(_is_bool, args)):
        needed = [arg for arg in args if not _is_everywhere(arg, not term.where)] or args[:1]
        if term.value == -math.inf or len(needed) == 1:
            return [dataclasses.replace(term, node=arg) for arg in needed]
    return None


def _is_everywhere(node: fx.Node, value: bool) -> bool:
    """Whether a bool tensor is known to be one value everywhere."""
    found = constant(node) if graphs.type_of(node).size <= SMALL else None
    return found is not None and bool((found == value).all())


def _hiding(node: fx.Node) -> Sequence[Term] | None:
    """A tensor of 0 and a number that hides keys, as a term of what it is made of."""
    if (chosen := chosen_of(node)) is None or max(chosen[1:]) != 0 or min(chosen[1:]) > HIDDEN:
        return None
    return [Term(chosen[0], min(chosen[1:]), where=chosen[1] != 0, adds=True)]


def chosen_of(node: Any) -> tuple[fx.Node, float, float] | None:
    """(a bool tensor, the number where it is True, the number where it is False) of a tensor that is made so."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    args: Any = node.args
    if node.target in (*IDENTITIES, aten.expand.default):
        return chosen_of(args[0])
    if node.target is aten._to_copy.default and (chosen := chosen_of(args[0])) is not None:
        one, other = (float(torch.tensor(value).to(node.meta["val"].dtype)) for value in chosen[1:])
        return chosen[0], one, other
    if node.target is aten.masked_fill.Scalar:
        one, other = number(args[2]), _everywhere(args[0])
    elif node.target is aten.where.self:
        one, other = _everywhere(args[1]), _everywhere(args[2])
    else:
        return None
    mask = args[1] if node.target is aten.masked_fill.Scalar else args[0]
    return None if one is None or other is None else (mask, one, other)


def _everywhere(value: Any) -> float | None:
    """The number that a tensor holds everywhere, if it is a number or is filled with one."""
    if graphs.is_call(value, aten.zeros.default):
        return 0.0
    return number(value.args[1]) if graphs.is_call(value, aten.full.default) else number(value)


def _adds_ones(node: fx.Node) -> bool:
    """Whether a node is a view that adds or drops sizes of 1 in front, which broadcasting does too."""
    if node.target not in RESHAPES:
        return False
    source: Any = node.args[0]
    before, after = list(graphs.type_of(source).shape), list(graphs.type_of(node).shape)
    shape, longer = sorted((before, after), key=len)
    return longer == [1] * (len(longer) - len(shape)) + shape


def _is_bool(value: Any) -> bool:
    return isinstance(value, fx.Node) and graphs.type_of(value).element.torch == torch.bool


def split(
    terms: Sequence[Term], is_causal: bool, queries: int, keys: int, groups: int, known: Known
) -> tuple[StaticMask | None, tuple[Term, ...]]:
    """The part of a mask that is known, and the terms that are left to compute.

    A known part is the same in every head and leaves each query a key. Beside terms that are left it is one of -inf, as
    a query that is left no key sees those with a finite score; and, unless those are along keys alone, a causal mask or
    none, as the kernel that adds biases knows no other.

    Args:
        terms, is_causal, queries, keys: of the attention.
        groups: how many heads share keys.
        known: what was found of terms before, which layers share; gets what is found.

    Returns:
        (None if nothing is known to hide a key, the other terms).
    """
    causal = StaticMask(queries, keys) if is_causal else None
    known.update({term: _hidden(term) for term in terms if term not in known})
    found = [(term, known[term]) for term in terms]
    rest = tuple(term for term, hidden in found if hidden is None)
    hiding = [hidden for _, hidden in found if hidden is not None]
    if not hiding:
        return causal, rest
    shown = [np.tri(queries, keys, dtype=bool)] if is_causal else []
    seen = np.logical_and.reduce([*shown, *(np.broadcast_to(hidden == 0, (queries, keys)) for hidden in hiding)])
    mask = StaticMask.of(seen) if seen.any(axis=1).all() else None
    is_exact = all(np.isin(hidden, (0, -np.inf)).all() for hidden in hiding)
    is_known = mask is not None and (mask.is_causal or all(term.is_along_keys(groups) for term in rest))
    if mask is None or (rest and not (is_exact and is_known)):
        return causal, tuple(terms)
    return mask, rest


def _hidden(term: Term) -> np.ndarray[Any, Any] | None:
    """What a constant term adds to the scores of every head, float [.., ..]: 0, or what hides a key; None if it does
    anything else."""
    found = constant(term.node)
    if found is not None and found.ndim > 2:
        heads = found.flatten(0, -3)
        found = heads[0] if bool((heads[1:] == heads[0]).all()) else None
    if found is None:
        return None
    value: Any = found
    if term.value is not None:
        value = torch.where(value == term.where, term.value, 0.0)
    if not value.dtype.is_floating_point or not bool(((value <= HIDDEN) | (value == 0)).all()):
        return None
    return torch.atleast_2d(value.double()).flatten(0, -2).numpy()
