"""Masks that show each sequence its first keys: which comparison makes them, and what tells how many there are.

``arange(keys) < lengths[:, None]`` is found whichever side the positions are on, with ``<`` or ``<=``, negated or not,
through views, as a bool tensor or as one of 0 and -inf, and with positions that start at another number than 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.masks import Term, chosen_of, constant
from tpu_lowering.fuse.attention.views import View, digits, view_of
from tpu_lowering.ir import graphs

aten = compat.aten

NOT = (aten.bitwise_not.default, aten.logical_not.default)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
FLIPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
"""A comparison with its sides exchanged."""
NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}
COMPARISONS: dict[Any, str] = {
    aten.lt.Tensor: "lt", aten.le.Tensor: "le", aten.gt.Tensor: "gt", aten.ge.Tensor: "ge",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many keys the sequences see, each its first ones: ``node + more``, where that is between 0 and all.

    Attributes:
        node: integers, one for each sequence in order, or one for all; None for all keys.
        more: what is added to them.
    """

    node: fx.Node | None = None
    more: int = 0

    def placed(self, graph: fx.Graph, sequences: int, keys: int) -> fx.Node:
        """A node i32 [sequences] with numbers from 0 to ``keys``, at the graph's insertion point."""
        if self.node is None:
            cpu = torch.device("cpu")
            return graphs.call(graph, aten.full.default, [sequences], keys, dtype=torch.int32, device=cpu)
        node, type_ = self.node, graphs.type_of(self.node)
        if type_.element.torch != torch.int64:
            node = graphs.converted(graph, node, torch.int32)
        node = graphs.call(graph, aten.clamp.default, node, -self.more, keys - self.more)
        node = graphs.converted(graph, node, torch.int32)
        if self.more:
            node = graphs.call(graph, aten.add.Tensor, node, self.more)
        node = graphs.call(graph, aten.reshape.default, node, [type_.size])
        return node if type_.size == sequences else graphs.call(graph, aten.expand.default, node, [sequences])


def lengths_of(terms: Sequence[Term], leading: Sequence[int], sequences: int, keys: int) -> Lengths | None:
    """What a mask leaves of the keys, if it is the first ones of each sequence; None for any other mask.

    Args:
        terms: all that is done to the scores, as ``attention.masks.parts`` gives it.
        leading: sizes of the scores before the last two: those of the sequences, then those of the heads.
        sequences, keys: how many there are.
    """
    if not terms:
        return Lengths()
    return _of_term(terms[0], leading, sequences, keys) if len(terms) == 1 else None


def _of_term(term: Term, leading: Sequence[int], sequences: int, keys: int) -> Lengths | None:
    view = view_of(term.node, _behind)
    compared = view.base
    if compared.op != "call_function" or compared.target not in COMPARISONS or keys == 1:
        return None
    axis, is_shown = _axis_of_keys(view, leading, sequences, keys), _is_shown(term, view)
    if axis is None or is_shown is None:
        return None
    relation = COMPARISONS[compared.target] if is_shown else NEGATED[COMPARISONS[compared.target]]
    one, other = compared.args[:2]
    for positions, lengths, found in ((one, other, relation), (other, one, FLIPPED[relation])):
        start = _start(positions, compared, axis)
        if start is not None and found in ("lt", "le") and _has_one_each(lengths, compared, axis, sequences):
            assert isinstance(lengths, fx.Node)
            return Lengths(lengths, (found == "le") - start)
    return None


def _behind(node: fx.Node) -> fx.Node | None:
    """The bool tensor that a negation, or a tensor of two numbers, is made of."""
    source: Any = node.args[0] if node.target in NOT else None
    if source is None:
        chosen = chosen_of(node)
        return None if chosen is None else chosen[0]
    return source if graphs.type_of(source).element.torch == torch.bool else None


def _is_shown(term: Term, view: View) -> bool | None:
    """True if a term hides, by -inf, the keys for which a comparison is false; False if those for which it is true.

    Returns:
        None if it does anything else.
    """
    at = next((at for at, node in enumerate(view.path) if chosen_of(node) is not None), None)
    if (term.value is None) == (at is None):
        return None
    numbers = (term.value, 0.0) if term.where else (0.0, term.value)
    if at is not None:
        chosen = chosen_of(view.path[at])
        assert chosen is not None
        numbers = chosen[1:]
    if set(numbers) != {-math.inf, 0.0}:
        return None
    return (numbers[0] == 0) == (sum(node.target in NOT for node in view.path[at or 0 :]) % 2 == 0)


def _axis_of_keys(view: View, leading: Sequence[int], sequences: int, keys: int) -> int | None:
    """The axis of a comparison along which the keys are, if its others are the sequences, in order, or none."""
    rank, shape = len(view.dims), graphs.type_of(view.base).shape
    if rank > len(leading) + 2 or not view.dims[-1:] or any(view.dims[-2:-1]) or len(view.dims[-1]) != 1:
        return None
    axis = view.dims[-1][0].axis
    if view.dims[-1] != digits(axis, keys) or shape[axis] != keys:
        return None
    before = view.dims[:-2]
    others = [*([()] * (len(leading) - len(before))), *before]
    batch = next((at for at in range(len(leading) + 1) if math.prod(leading[:at]) == sequences), None)
    own = [digit for at, size in enumerate(shape) if at != axis for digit in digits(at, size)]
    if batch is None or any(others[batch:]) or [digit for dim in others for digit in dim] != own:
        return None
    return axis


def _start(positions: Any, compared: fx.Node, axis: int) -> int | None:
    """The first number of a constant that counts up by one along an axis of a comparison, and is the same otherwise."""
    if not isinstance(positions, fx.Node) or graphs.type_of(positions).element.torch not in INTEGERS:
        return None
    shape, keys = graphs.type_of(positions).shape, graphs.type_of(compared).shape[axis]
    at = axis - graphs.type_of(compared).ndim
    if math.prod(shape) != keys or len(shape) < -at or shape[at] != keys:
        return None
    found = constant(positions)
    if found is None:
        return None
    row = found.reshape(-1).long()
    start = int(row[0])
    return start if torch.equal(row, torch.arange(start, start + keys)) else None


def _has_one_each(lengths: Any, compared: fx.Node, axis: int, sequences: int) -> bool:
    """Whether a side of a comparison is integers, one for each sequence or one for all, the same along an axis."""
    if not isinstance(lengths, fx.Node) or graphs.type_of(lengths).element.torch not in INTEGERS:
        return False
    type_ = graphs.type_of(lengths)
    at = axis - graphs.type_of(compared).ndim
    is_along = len(type_.shape) >= -at and type_.shape[at] != 1
    if is_along or type_.size not in (1, sequences):
        return False
    return type_.size * graphs.type_of(compared).shape[axis] == graphs.type_of(compared).size
