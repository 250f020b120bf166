"""Where pages of keys or values lie: in a value of their own, or inside of one that holds those of all layers.

A kernel takes a whole value. ``cache[layer]`` would be copied for it; but a page of ``cache`` is as good, by the number
that it has there.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.views import VIEWS
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.normalise.views import RESHAPES

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class Places:
    """Pages of one size, one after another in a value.

    Page ``n`` of head ``h`` is the one with the number ``start + h * head_step + n * page_step``.

    Attributes:
        node: the value.
        total: how many pages it has.
        start, head_step, page_step: see above.
    """

    node: fx.Node
    total: int
    start: int
    head_step: int
    page_step: int

    def is_like(self, other: Places) -> bool:
        """Whether pages have the same numbers in another value."""
        return self == dataclasses.replace(other, node=self.node)

    def is_by_head(self, heads: int) -> bool:
        """Whether there is nothing but the pages of the first head, then those of the next."""
        return self.is_like(Places(self.node, self.total, 0, self.total // heads, 1))


def places_of(source: fx.Node, shape: tuple[int, int, int, int, int]) -> Places | None:
    """Where the pages of a tensor lie in the value that it is a view of; None if they are no whole pages there.

    Args:
        source: the tensor.
        shape: its sizes, folded: outer heads, pages, inner heads, rows of a page, elements of a row. There is one outer
            head or one inner one.
    """
    base, memory = _memory(source)
    if is_part(source) and not _is_in_memory(base):
        return None
    try:
        (outer, page, inner, row, element), start = memory.view(shape).stride(), memory.storage_offset()
    except RuntimeError:
        return None
    size, head = math.prod(shape[-2:]), outer if shape[0] > 1 else inner
    if (row, element) != (shape[-1], 1) or any(step % size for step in (head, page, start)):
        return None
    total, rest = divmod(graphs.type_of(base).size, size)
    return None if rest else Places(base, total, start // size, head // size, page // size)


def is_part(source: fx.Node) -> bool:
    """Whether a tensor is some of the elements of a value."""
    base, memory = _memory(source)
    return memory.numel() < graphs.type_of(base).size


def is_apart(source: fx.Node) -> bool:
    """Whether a tensor is elements of a value in another order, or some of them: a kernel is given a copy."""
    return is_part(source) or not _memory(source)[1].is_contiguous()


def _is_in_memory(node: fx.Node) -> bool:
    """Whether a value is written as a whole, whoever uses it: an argument, a constant, or a result."""
    return node.op != "call_function" or any(user.op == "output" for user in node.users)


def _memory(node: fx.Node) -> tuple[fx.Node, torch.Tensor]:
    """(the value whose elements a node shows, a tensor without data that shows those of one that lies row by row)."""
    args: Any = node.args
    if node.op == "call_function" and (node.target is read_box or node.target in VIEWS):
        base, memory = _memory(args[0])
        try:
            return base, _shown(node, memory)
        except RuntimeError:  # a reshape that copies
            pass
    return node, torch.empty(graphs.type_of(node).shape, device="meta")


def _shown(node: fx.Node, memory: torch.Tensor) -> torch.Tensor:
    args: Any = node.args
    if node.target is read_box:
        box = args[1]
        assert isinstance(box, Box)
        return memory[box.slices()]
    if node.target is aten.permute.default:
        return memory.permute(graphs.bound(node)["dims"])
    shape = graphs.type_of(node).shape
    return memory.view(shape) if node.target in RESHAPES else memory.expand(shape)
