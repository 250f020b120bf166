"""How XLA lays out the inputs of a program: dimensions in the order that takes the least padding.

A kernel takes its operands with the last dimension along lanes. XLA copies an input that lies otherwise, and a copy is
as dear as the pass that it is made for.
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
MOST_DIMENSIONS = 5  # whose orders are compared


def order_in_memory(shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions of an input from the outermost to the innermost, as libtpu 0.0.52 lays them out: as they are, or
    in another order whose last two dimensions waste fewer elements in tiles of 8 by 128."""
    given = tuple(range(len(shape)))
    if not 2 <= len(shape) <= MOST_DIMENSIONS:
        return given
    return min(itertools.permutations(given), key=lambda order: (_padded([shape[dim] for dim in order]), order))


def _padded(sizes: Sequence[int]) -> int:
    """Elements with padding. Of fewer than 8 rows a tile has as many, rounded up to a power of two."""
    *outer, rows, columns = sizes
    tile = min(SUBLANES, 1 << (rows - 1).bit_length())
    return math.prod(outer) * -(-rows // tile) * tile * -(-columns // LANES) * LANES


def is_input(node: fx.Node) -> bool:
    """Whether a node is an input of its program, or the same elements in another shape."""
    while graphs.is_call(node, aten.reshape.default) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"
