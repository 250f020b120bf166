"""Masks of an attention that depend on no input: found by computing them, or their diagonals, while compiling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention import diagonals
from tpu_lowering.fuse.attention.blocks import rounded
from tpu_lowering.fuse.attention.diagonals import Varying
from tpu_lowering.fuse.attention.static_masks import MOST, StaticMask
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


Known = dict[Term, "Added | None"]
"""For terms that were looked at, what they add to every head; None if unknown."""


@dataclasses.dataclass(frozen=True, eq=False)
class Added:
    """What a term adds to the scores of every head: 0, or what hides a key.

    Attributes:
        values: float [queries or 1, keys or 1]; or one for each diagonal, as ``StaticMask.of_diagonals`` has them.
    """

    values: np.ndarray[Any, Any]

    @property
    def is_of_diagonals(self) -> bool:
        return self.values.ndim == 1

    def array(self, queries: int, keys: int) -> np.ndarray[Any, Any]:
        """float [queries or 1, keys or 1]."""
        if not self.is_of_diagonals:
            return self.values
        return self.values[np.arange(keys)[None, :] - np.arange(queries)[:, None] + queries - 1]


def number(value: Any) -> float | None:
    """The value of a number, or of a constant tensor of one element; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node) or graphs.type_of(value).size != 1:
        return None
    found = constant(value)
    return None if found is None else float(found)


def constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on no input and no random number."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_computed(node) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_computed(node: fx.Node) -> bool:
    """Whether a node is a tensor that it takes nothing but other nodes to know."""
    is_call = node.op in ("call_function", "get_attr") and node.target not in (*ALLOCATIONS, kernel_call)
    is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return is_call and not is_random and isinstance(node.meta.get("val"), torch.Tensor)


def constant(node: fx.Node) -> torch.Tensor | None:
    """The value of a node that depends on no input and no random number; None for any other, or a large one."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        needed = waiting.pop()
        if not _is_computed(needed) or needed.meta["val"].numel() > MOST:
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
    varying: dict[fx.Node, Varying | None] = {}
    known.update({term: _hidden(term, varying) for term in terms if term not in known})
    found = [(term, known[term]) for term in terms]
    is_large = queries * keys > MOST
    hiding = {term: one for term, one in found if one is not None and (one.is_of_diagonals or not is_large)}
    rest = tuple(term for term in terms if term not in hiding)
    if not hiding:
        return causal, rest
    mask = _mask(list(hiding.values()), is_causal, queries, keys)
    is_exact = all(np.isin(one.values, (0, -np.inf)).all() for one in hiding.values())
    is_known = mask is not None and (mask.is_causal or all(term.is_along_keys(groups) for term in rest))
    if mask is None or (rest and not (is_exact and is_known)):
        return causal, tuple(terms)
    return (None if mask.is_full else mask), rest


def _mask(hiding: Sequence[Added], is_causal: bool, queries: int, keys: int) -> StaticMask | None:
    """The keys that nothing hides; None where a query is left none, or if there are too many for what is no band."""
    if all(one.is_of_diagonals for one in hiding):
        below = np.arange(1 - queries, keys) <= 0 if is_causal else np.ones(queries + keys - 1, bool)
        mask = StaticMask.of_diagonals(
            queries, keys, np.logical_and.reduce([below, *(one.values == 0 for one in hiding)])
        )
    else:
        shown = [np.tri(queries, keys, dtype=bool)] if is_causal else []
        arrays = (np.broadcast_to(one.array(queries, keys) == 0, (queries, keys)) for one in hiding)
        mask = StaticMask.of(np.logical_and.reduce([*shown, *arrays]))
    if mask is None or not mask.shows_all_queries:
        return None
    is_large = queries * keys > MOST  # one that blocks do not divide would be computed
    return None if is_large and mask.longer_band((rounded(queries), rounded(keys))) is None else mask


def _hidden(term: Term, varying: dict[fx.Node, Varying | None]) -> Added | None:
    """What a constant term adds to the scores of every head; None if it does anything but to hide keys."""
    by_diagonal = diagonals.varying(term.node, varying)
    found: torch.Tensor | None = None
    if by_diagonal is not None and by_diagonal.dims in ((), (-1,), (-2,), (-2, -1)):
        found = by_diagonal.values
        if by_diagonal.dims != (-2, -1):
            found = found.reshape((-1, 1) if by_diagonal.dims == (-2,) else (1, -1))
    elif (computed := constant(term.node)) is not None:
        heads = computed.reshape((-1, *(1, 1, *computed.shape)[-2:]))
        found = heads[0] if bool((heads[1:] == heads[0]).all()) else None
    if found is None:
        return None
    value: Any = found
    if term.value is not None:
        value = torch.where(value == term.where, term.value, 0.0)
    if not value.dtype.is_floating_point or not bool(((value <= HIDDEN) | (value == 0)).all()):
        return None
    return Added(value.double().numpy())
