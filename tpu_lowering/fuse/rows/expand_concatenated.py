"""A row put together of pieces of itself, as rotations and selections, which a kernel does on rows that it holds.

Before, as rotary embeddings have it, and its gradient::

    high = read_box(x, box('0:64, 64:128'))
    neg = aten.neg(high)
    low = read_box(x, box('0:64, 0:64'))
    cat = aten.cat([neg, low], -1)

After::

    roll = aten.roll(x, [64], [1])
    neg = aten.neg(roll)
    cat = aten.where(below_64, neg, roll)

XLA writes such pieces and reads them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.ir.boxes import Box, read_box, write_box

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a row, computed point by point of a part of another.

    Attributes:
        source: whose rows it is a part of.
        start: where the part begins in them.
        chain: the pointwise nodes that compute it, first to last.
    """

    source: fx.Node
    start: int
    chain: tuple[fx.Node, ...]

    def rotated(self, whole: torch.Tensor, dim: int, to: int) -> torch.Tensor:
        """The source's rows rotated so that the part begins at ``to``, and computed on as a whole."""
        value = whole if self.start == to else torch.roll(whole, [to - self.start], [dim])
        for node in self.chain:
            target: Any = node.target
            value = target(*(value if isinstance(a, fx.Node) else a for a in node.args), **node.kwargs)
        return value

    def key(self) -> Hashable:
        """Tells what is done to the source's rows."""
        calls = [compat.map_arg((n.target, n.args, dict(n.kwargs)), lambda used: arguments.Slot(0)) for n in self.chain]
        return (self.start, arguments.key(calls))


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """How a node is computed of others.

    Attributes:
        operands: the others.
        run: what computes it of their values.
        key: equal for functions that compute the same of values of equal types.
    """

    operands: list[fx.Node]
    run: Callable[..., Any]
    key: Hashable


def pieces_of(node: fx.Node) -> Parts | None:
    """What a row put together of pieces is made of, and the function that makes it; None for any other node."""
    if graphs.is_call(node, aten.cat.default):
        return _of_cat(node)
    return _of_write(node) if graphs.is_call(node, write_box) else None


def _of_cat(node: fx.Node) -> Parts | None:
    given = graphs.bound(node)
    shape = shape_of(node)
    dim = given["dim"] % len(shape)
    found = [_piece(part, dim, shape) for part in given["tensors"]]
    pieces = [piece for piece in found if piece is not None]
    if len(pieces) < max(2, len(found)):
        return None
    sizes = [shape_of(part)[dim] for part in given["tensors"]]
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    sources = list(dict.fromkeys(piece.source for piece in pieces))

    def run(*values: torch.Tensor) -> torch.Tensor:
        whole = dict(zip(sources, values, strict=True))
        result = pieces[-1].rotated(whole[pieces[-1].source], dim, starts[-1])
        for piece, start, end in reversed(list(zip(pieces[:-1], starts, starts[1:], strict=False))):
            below = _places(result, dim) < end
            result = torch.where(below, piece.rotated(whole[piece.source], dim, start), result)
        return result

    described = [(sources.index(piece.source), start, piece.key()) for piece, start in zip(pieces, starts, strict=True)]
    return Parts(sources, run, (node.target, dim, *described))


def _of_write(node: fx.Node) -> Parts | None:
    base, part, box = node.args
    assert isinstance(base, fx.Node) and isinstance(part, fx.Node) and isinstance(box, Box)
    shape = shape_of(node)
    dim = _one_dimension(box, shape)
    piece = None if dim is None else _piece(part, dim, shape)
    if dim is None or piece is None:
        return None
    start, end, _ = box.ranges[dim]
    source = piece.source

    def run(value: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        places = _places(below, dim)
        return torch.where((places >= start) & (places < end), piece.rotated(value, dim, start), below)

    return Parts([source, base], run, (node.target, dim, start, end, piece.key()))


def _places(like: torch.Tensor, dim: int) -> torch.Tensor:
    """The place of each element along a dimension."""
    shape = [1] * like.dim()
    shape[dim] = like.shape[dim]
    return aten.arange.start_step(0, like.shape[dim], 1, dtype=torch.int32, device=like.device).reshape(shape)


def _piece(node: fx.Node, dim: int, shape: Sequence[int]) -> Piece | None:
    """A value as a piece of rows of a shape; None if it is none."""
    chain: list[fx.Node] = []
    while is_pointwise(node):
        (used, *others) = tensor_operands(node)
        if others or shape_of(used) != shape_of(node):
            return None
        chain.insert(0, node)
        node = used
    if not graphs.is_call(node, read_box):
        return None
    source, box = node.args
    assert isinstance(source, fx.Node) and isinstance(box, Box)
    if shape_of(source) != tuple(shape) or _one_dimension(box, shape) not in (dim, None):
        return None
    return Piece(source, box.ranges[dim][0], tuple(chain))


def _one_dimension(box: Box, shape: Sequence[int]) -> int | None:
    """The one dimension along which a box holds a part of a value, without gaps."""
    parts = [at for at, size in enumerate(shape) if box.ranges[at] != (0, size, 1)]
    return parts[0] if len(parts) == 1 and box.ranges[parts[0]][2] == 1 else None
