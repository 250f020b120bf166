"""Where XLA puts arrays in HBM, and what it takes to hand them to a kernel, whose operands lie row by row.

The last two dimensions of a layout are padded to tiles of 8 by 128. Arguments and results of a program have the order
of dimensions that is padded least (libtpu 0.0.52): float32 [8192, 64] lies column by column, and a kernel that takes it
is given a copy. What XLA computes inside a program lies as its users want it. A CPU has no such layouts: bytes of
graphs for it are those of the elements, so that kernels can be tested in any size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import fx

from tpu_lowering.ir import graphs

aten = torch.ops.aten

LANES, SUBLANES = 128, 8
"""A tile."""

VIEWS = (aten.reshape.default, aten.permute.default, aten.expand.default)


def order_in_memory(shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions of an argument or a result from the outermost to the innermost: as they are, or with two others
    last whose tiles are padded less."""
    given = tuple(range(len(shape)))
    pairs = itertools.permutations(given, 2)
    orders = [given, *((*(at for at in given if at not in pair), *pair) for pair in pairs)]
    return min(orders, key=lambda order: (math.prod(_padded([shape[at] for at in order])), order))


def placed_bytes(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of an array that lies row by row, padding included."""
    return itemsize * math.prod(_padded(shape))


def compact_bytes(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of an array in the order of dimensions that is padded least."""
    return placed_bytes([shape[at] for at in order_in_memory(shape)], itemsize)


def is_row_by_row(shape: Sequence[int], itemsize: int) -> bool:
    """Whether an argument or a result of a program lies row by row."""
    return placed_bytes(shape, itemsize) == compact_bytes(shape, itemsize)


def bytes_of(node: fx.Node) -> int:
    """Bytes of a value as XLA alone would place it."""
    return compact_bytes(*_shape_and_size(node)) if _has_tiles(node) else graphs.type_of(node).nbytes


def bytes_in_kernel(node: fx.Node, shape: Sequence[int]) -> int:
    """Bytes of a value in the shape that a kernel takes or gives it in."""
    size = graphs.type_of(node).element.numpy.itemsize
    return placed_bytes(shape, size) if _has_tiles(node) else graphs.type_of(node).nbytes


def source_of(node: fx.Node) -> fx.Node:
    """What a node is a view of; itself if it is none."""
    while any(graphs.is_call(node, view) for view in VIEWS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def is_input(node: fx.Node) -> bool:
    """Whether a node is an input of its program, or the same elements in another shape."""
    while graphs.is_call(node, aten.reshape.default) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"


def bytes_to_copy_in(node: fx.Node) -> int:
    """Bytes that are read and written to give a value to a kernel: of an argument of the program in another order."""
    source = source_of(node)
    if not _has_tiles(node) or source.op != "placeholder" or is_row_by_row(*_shape_and_size(source)):
        return 0
    return bytes_of(source) + placed_bytes(*_shape_and_size(node))


def bytes_to_copy_out(node: fx.Node) -> int:
    """Bytes that are read and written to make what a kernel wrote a result of the program, in another order."""
    pending, copied = [node] if _has_tiles(node) else [], 0
    while pending:
        for user in pending.pop().users:
            if user.op == "output" and not is_row_by_row(*_shape_and_size(node)):
                copied = placed_bytes(*_shape_and_size(node)) + bytes_of(node)
            elif any(graphs.is_call(user, view) for view in VIEWS):
                pending.append(user)
    return copied


def _has_tiles(node: fx.Node) -> bool:
    return bool(graphs.device_kind(node.graph))


def _shape_and_size(node: fx.Node) -> tuple[tuple[int, ...], int]:
    type_ = graphs.type_of(node)
    return type_.shape, type_.element.numpy.itemsize


def _padded(shape: Sequence[int]) -> list[int]:
    if len(shape) < 2:
        return list(shape)
    *outer, above, last = shape
    rows = min(SUBLANES, 1 << (above - 1).bit_length()) if above > 0 else 1
    return [*outer, -(-above // rows) * rows, -(-last // LANES) * LANES]
