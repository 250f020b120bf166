"""Reductions that XLA computes together with what follows them, in one pass over the rows.

Of ``exp(x - amax(x)) / sum(...)`` it makes one operation that reads every element once, where

* a row is one of several, along a dimension that is neither the outermost nor alone beside it: [64, 512, 1024], not
  [32768, 1024];
* what is reduced is used as it is: a mean, a root or a logarithm of it makes another pass;
* a row has fewer than ``HEURISTICS.long_row`` elements, and nothing but one result is needed.

So says libtpu 0.0.52 for tpu7x, v5e and v6e, in float32 and bfloat16. A CPU runs kernels for tests alone, and there
nothing of it counts.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_regions import RowRegion, shape_of
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.ir import graphs

aten = compat.aten

EXTREMES = (aten.amax.default, aten.amin.default)


def is_in_one_pass(region: RowRegion, node: fx.Node, outputs: Collection[fx.Node]) -> bool:
    """Whether XLA computes a reduction of a region together with its users.

    Args:
        region: the region.
        node: one of its members.
        outputs: the members whose values are needed outside.
    """
    kind, source = kind_of(node), node.args[0]
    if not graphs.chip(node.graph).is_tpu:
        return False
    if kind is None or kind.name != "reduction" or len(kind.dims) != 1 or kind.passes != 1 or len(outputs) != 1:
        return False
    assert isinstance(source, fx.Node)
    sizes = shape_of(source)
    outer = [size for size in sizes[: kind.dims[0]] if size > 1]
    others = [size for at, size in enumerate(sizes) if size > 1 and at != kind.dims[0]]
    if not outer or len(others) < 2 or sizes[kind.dims[0]] >= HEURISTICS.long_row or node in outputs:
        return False
    # XLA takes a conversion out of a maximum: what is reduced is then converted before it is used.
    if node.target in EXTREMES and graphs.is_call(source, aten._to_copy.default):
        return False
    return all(shape_of(user) == sizes for user in _users(region, node))


def _users(region: RowRegion, node: fx.Node) -> list[fx.Node]:
    """What uses a value, behind views."""
    found: list[fx.Node] = []
    for user in node.users:
        kind = kind_of(user)
        is_view = kind is not None and kind.name == "view" and user in region.accesses
        found += _users(region, user) if is_view else [user]
    return found
