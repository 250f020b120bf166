"""What weights are multiplied by, if that is dropout: 0 or 1 for each of them, times a number."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.operands import factor_of, keeps_rows
from tpu_lowering.ir import graphs
from tpu_lowering.ir.random import Drawn, draw

aten = compat.aten

CASTS = (aten._to_copy.default, compat.prims.convert_element_type.default)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """What weights are multiplied by.

    Attributes:
        kept: a tensor of 0 and 1, one for each weight, in their order.
        factor: what it is multiplied by.
    """

    kept: fx.Node
    factor: float

    def is_as(self, other: Dropped) -> bool:
        """Whether another is the same draw, times the same number."""
        return self.kept is other.kept and math.isclose(self.factor, other.factor, rel_tol=1e-6)


def dropped_by(product: fx.Node | None) -> tuple[fx.Node, Dropped] | None:
    """(what is dropped of, by what) of a product of two tensors of its size; None for anything else."""
    if product is None or not graphs.is_call(product, aten.mul.Tensor) or product.kwargs:
        return None
    one, other = product.args
    for rest, by in ((one, other), (other, one)):
        if isinstance(rest, fx.Node) and isinstance(by, fx.Node) and (found := _dropped(by)) is not None:
            sizes = {math.prod(graphs.type_of(node).shape) for node in (rest, by, found.kept, product)}
            return (rest, found) if len(sizes) == 1 else None
    return None


def _dropped(node: fx.Node) -> Dropped | None:
    """A tensor as 0 or 1 times a number; None if nothing says that it is that."""
    source: Any = node.args[0] if node.op == "call_function" and node.args else None
    if isinstance(source, fx.Node) and isinstance(source.meta.get("val"), torch.Tensor):
        found = _dropped(source) if _keeps_truth(node) else None
        if found is not None:
            factor = factor_of(node)
            if factor is not None and math.isfinite(factor):
                return Dropped(found.kept, found.factor * factor)
            if node.target not in CASTS or node.meta["val"].is_floating_point() or found.factor == 1:
                return found
    return Dropped(node, 1.0) if _is_zero_or_one(node) else None


def _keeps_truth(node: fx.Node) -> bool:
    """Whether a node is its first argument with other types or sizes, or times a number."""
    return node.target in CASTS or keeps_rows(node) or factor_of(node) is not None


def _is_zero_or_one(node: fx.Node) -> bool:
    if node.meta["val"].dtype == torch.bool:
        return True
    if node.op == "placeholder":
        drawn = node.meta.get("drawn")
        return isinstance(drawn, Drawn) and drawn.overload is aten.bernoulli.p
    drawn_by = node.args[0] if node.target is draw else node.target
    return node.op == "call_function" and drawn_by is aten.bernoulli.p
