"""How values lie in a TPU's memory, where that is known: in which order their axes follow one another.

A kernel takes arrays in row-major order; in any other the compiler copies them first. The last two axes in memory are
cut into tiles of 8 by 128 (JAX's Pallas documentation, "TPU details"), so a view that splits or merges one of those can
be a copy too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import fx

from tpu_lowering.fuse.kinds import kind_of
from tpu_lowering.fuse.regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs

aten = torch.ops.aten

ROWS, LANES = 8, 128
"""Of a tile."""

Order = tuple[int, ...]
"""A value's axes from the outermost in memory to the innermost."""


def default_order(shape: Sequence[int]) -> Order:
    """Where libtpu puts a program's arguments and results: as few bytes of tiles as possible, of equal ones with the
    last axes innermost (libtpu 0.0.52 on tpu7x, read off ``entry_computation_layout`` of some fifteen programs)."""
    rank = len(shape)
    if rank < 2:
        return tuple(range(rank))

    def padded(pair: tuple[int, int]) -> tuple[int, int, int]:
        inner, outer = pair
        rest = math.prod(size for at, size in enumerate(shape) if at not in pair)
        tiles = math.ceil(shape[outer] / ROWS) * ROWS * math.ceil(shape[inner] / LANES) * LANES
        return rest * tiles, -inner, -outer

    inner, outer = min(itertools.permutations(range(rank), 2), key=padded)
    return (*(at for at in range(rank) if at not in (inner, outer)), outer, inner)


def order_of(node: fx.Node) -> Order | None:
    """How a value lies in memory; None where the compiler may choose."""
    if node.op == "placeholder":
        return default_order(shape_of(node))
    if _is_permuted(node):
        source, dims = node.args[0], _dims(node)
        found = order_of(source) if isinstance(source, fx.Node) else None
        return None if found is None else tuple(dims.index(axis) for axis in found)
    return _first(order_of, [used for used in tensor_operands(node) if _is_pointwise(node, used)])


def order_wanted(node: fx.Node) -> Order | None:
    """How the users of a value want it to lie; None where they take it as it is."""

    def wanted(user: fx.Node) -> Order | None:
        if user.op == "output":
            return default_order(shape_of(node))
        if _is_permuted(user):
            found, dims = order_wanted(user), _dims(user)
            return None if found is None else tuple(dims[axis] for axis in found)
        return order_wanted(user) if _is_pointwise(user, node) else None

    return _first(wanted, node.users)


def _first(order: Callable[[fx.Node], Order | None], nodes: Sequence[fx.Node] | dict[fx.Node, None]) -> Order | None:
    return next((found for found in map(order, nodes) if found is not None), None)


def _is_pointwise(node: fx.Node, used: fx.Node) -> bool:
    kind = kind_of(node)
    return kind is not None and kind.name == "pointwise" and shape_of(node) == shape_of(used)


def _is_permuted(node: fx.Node) -> bool:
    return graphs.is_call(node, aten.permute.default)


def _dims(node: fx.Node) -> list[int]:
    dims: list[int] = list(node.args[1])  # type: ignore[arg-type]
    return [dim % len(dims) for dim in dims]
