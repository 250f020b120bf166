"""Rows that XLA computes inside what uses them.

Of ``x * rsqrt(mean(x * x)) @ w`` it makes two operations: one reads ``x`` for the mean, the other is the product, which
reads ``x`` again and normalises what it multiplies. The normalised rows are never written, whereas a kernel would write
them, and every product read them. So says libtpu 0.0.52 for tpu7x, v5e and v6e, in float32 and bfloat16, of one, two
and three products of the same rows. It is the same with pointwise work that no kernel can hold, on float8 elements or
64-bit ones. A CPU runs kernels for tests alone, and there nothing of it counts.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_regions import PRODUCTS
from tpu_lowering.fuse.xla.layouts import is_view
from tpu_lowering.ir import graphs

aten = compat.aten


def passes_using(node: fx.Node, members: Collection[fx.Node]) -> int:
    """How many operations XLA makes of what uses a member of a region, through views: one of each matrix product, and
    one of all pointwise work; 0 if anything else outside uses it too."""
    users = [user for user in _users(node) if user not in members]
    products = [user for user in users if user.target in PRODUCTS]
    pointwise = [user for user in users if _is_held_by_no_kernel(user)]
    only = graphs.chip(node.graph).is_tpu and len(products) + len(pointwise) == len(users)
    return len(products) + bool(pointwise) if only else 0


def _is_held_by_no_kernel(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    is_pointwise = torch.Tag.pointwise in tags or graphs.is_call(node, aten._to_copy.default)
    return is_pointwise and kind_of(node) is None


def _users(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    for user in node.users:
        found += _users(user) if is_view(user) else [user]
    return found
