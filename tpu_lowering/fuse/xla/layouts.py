"""Where XLA puts arrays in HBM: in which order their dimensions follow one another, and how many bytes that takes.

A kernel takes arrays row by row; in any other order the compiler copies them first. The last two dimensions in memory
are padded to tiles of 8 by 128 (JAX's Pallas documentation, "TPU details"), so a view that splits or merges one of
those can be a copy too. Arguments and results of a program have the order of dimensions that is padded least (libtpu
0.0.52): float32 [8192, 64] lies column by column. What XLA computes inside a program lies as its users want it; a
convolution wants images [n, c, h, w] as [h, w, n, c]. A CPU has no such layouts: bytes of graphs for it are those of
the elements, so that kernels can be tested in any size.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs
from tpu_lowering.ir.chips import LANES, SUBLANES
from tpu_lowering.session import kept

aten = compat.aten

VIEWS = (aten.reshape.default, aten.permute.default, aten.expand.default)

NORMS = (
    aten._native_batch_norm_legit_functional.default, aten._batch_norm_with_update_functional.default,
    aten._native_batch_norm_legit.no_stats, aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_no_update.default, aten.native_group_norm.default,
)  # fmt: skip
"""Operators whose first result is their first argument, scaled and shifted by statistics of channels."""

Order = tuple[int, ...]
"""A value's dimensions from the outermost in memory to the innermost."""


@kept(4096, "every order of the dimensions is tried; 0.5 KiB each")
def order_in_memory(shape: tuple[int, ...]) -> Order:
    """The dimensions of an argument or a result from the outermost to the innermost: as they are, or with two others
    last whose tiles are padded less."""
    given = tuple(range(len(shape)))
    pairs = itertools.permutations(given, 2)
    orders = [given, *((*(at for at in given if at not in pair), *pair) for pair in pairs)]
    return min(orders, key=lambda order: (math.prod(_padded([shape[at] for at in order])), order))


def placed_bytes(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of an array that lies row by row, padding included."""
    return itemsize * math.prod(_padded(shape))


def compact_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of an array in the order of dimensions that is padded least."""
    return placed_bytes([shape[at] for at in order_in_memory(shape)], itemsize)


def bytes_of(node: fx.Node) -> int:
    """Bytes of a value as XLA alone would place it."""
    return compact_bytes(*_shape_and_size(node)) if _has_tiles(node) else graphs.type_of(node).nbytes


def bytes_in_kernel(node: fx.Node, shape: Sequence[int]) -> int:
    """Bytes of a value in the shape that a kernel takes or gives it in."""
    size = graphs.type_of(node).element.numpy.itemsize
    return placed_bytes(shape, size) if _has_tiles(node) else graphs.type_of(node).nbytes


def is_view(node: fx.Node) -> bool:
    return any(graphs.is_call(node, view) for view in VIEWS)


def source_of(node: fx.Node) -> fx.Node:
    """What a node is a view of; itself if it is none."""
    while is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def readers_of(node: fx.Node) -> list[fx.Node]:
    """What uses a value, or views of it."""
    found: list[fx.Node] = []
    for user in node.users:
        found += readers_of(user) if is_view(user) else [user]
    return found


def order_of(node: fx.Node) -> Order | None:
    """How a value lies in memory; None where the compiler may choose."""
    if node.op == "placeholder":
        return order_in_memory(shape_of(node))
    if _is_convolved(node):
        return order_of_images(node)
    if _is_permuted(node):
        source, dims = node.args[0], _dims(node)
        found = order_of(source) if isinstance(source, fx.Node) else None
        return None if found is None else tuple(dims.index(axis) for axis in found)
    if (given := _normed(node)) is not None:
        return order_of(given)
    # The work is fused with what computes an operand, and reads an argument as that lies.
    operands = sorted(tensor_operands(node), key=lambda used: used.op == "placeholder")
    return _first(order_of, [used for used in operands if _is_pointwise(node, used)])


def order_wanted(node: fx.Node) -> Order | None:
    """How the users of a value want it to lie; None where they take it as it is."""

    def wanted(user: fx.Node) -> Order | None:
        if user.op == "output":
            return order_in_memory(shape_of(node))
        if _is_permuted(user):
            found, dims = order_wanted(user), _dims(user)
            return None if found is None else tuple(dims[axis] for axis in found)
        if _convolves(user, node):
            return order_of_images(node)
        return order_wanted(user) if _is_pointwise(user, node) else None

    return _first(wanted, node.users)


def _normed(node: fx.Node) -> fx.Node | None:
    """The images that a node has normalised, channel by channel or in groups of channels; else None."""
    if not graphs.is_call(node, operator.getitem) or node.args[1] != 0:
        return None
    call: Any = node.args[0]
    return call.args[0] if call.target in NORMS else None


def _is_convolved(node: fx.Node) -> bool:
    """Whether a node is what a convolution gives, or the gradient of what it takes."""
    if graphs.is_call(node, operator.getitem):
        call: Any = node.args[0]
        is_of_images = call.target is aten.convolution_backward.default and node.args[1] == 0
        return bool(is_of_images) and _has_images(call, 1)
    return node.target is aten.convolution.default and _has_images(node, 0)


def _convolves(user: fx.Node, node: fx.Node) -> bool:
    """Whether a convolution takes a node as images, or its backward does."""
    if user.target is aten.convolution_backward.default:
        return node in user.args[:2] and _has_images(user, 1)
    return user.target is aten.convolution.default and node is user.args[0] and _has_images(user, 0)


def _has_images(call: fx.Node, at: int) -> bool:
    """Whether the argument of a convolution's call has two spatial dimensions or more, which are not cut into patches:
    those are convolved otherwise."""
    images, kernel, stride = call.args[at], call.args[at + 1], graphs.bound(call)["stride"]
    assert isinstance(images, fx.Node) and isinstance(kernel, fx.Node)
    is_cut = 1 < stride[0] == shape_of(kernel)[2]
    return len(shape_of(images)) > 3 and not is_cut


def order_of_images(node: fx.Node) -> Order | None:
    """How convolutions have images [n, c, h, w] in memory; None on a CPU, and for what has fewer than four
    dimensions."""
    shape = shape_of(node)
    return (*range(2, len(shape)), 0, 1) if _has_tiles(node) and len(shape) > 3 else None


def _first(order: Callable[[fx.Node], Order | None], nodes: Sequence[fx.Node] | dict[fx.Node, None]) -> Order | None:
    return next((found for found in map(order, nodes) if found is not None), None)


def _is_pointwise(node: fx.Node, used: fx.Node) -> bool:
    return is_pointwise(node) and shape_of(node) == shape_of(used)


def _is_permuted(node: fx.Node) -> bool:
    return graphs.is_call(node, aten.permute.default)


def _dims(node: fx.Node) -> list[int]:
    dims: list[int] = list(node.args[1])  # type: ignore[arg-type]
    return [dim % len(dims) for dim in dims]


def _has_tiles(node: fx.Node) -> bool:
    return graphs.chip(node.graph).is_tpu


def _shape_and_size(node: fx.Node) -> tuple[tuple[int, ...], int]:
    type_ = graphs.type_of(node)
    return type_.shape, type_.element.numpy.itemsize


def _padded(shape: Sequence[int]) -> list[int]:
    if len(shape) < 2:
        return list(shape)
    *outer, above, last = shape
    rows = min(SUBLANES, 1 << (above - 1).bit_length()) if above > 0 else 1
    return [*outer, -(-above // rows) * rows, -(-last // LANES) * LANES]
