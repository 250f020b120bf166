"""Rows that XLA computes inside the matrix products that use them.

Of ``x * rsqrt(mean(x * x)) @ w`` it makes two operations: one reads ``x`` for the mean, the other is the product, which
reads ``x`` again and normalises what it multiplies. The normalised rows are never written, whereas a kernel would write
them, and every product read them. So says libtpu 0.0.52 for tpu7x, v5e and v6e, in float32 and bfloat16, of one, two
and three products of the same rows. A CPU runs kernels for tests alone, and there nothing of it counts.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from tpu_lowering.fuse.layouts import VIEWS
from tpu_lowering.fuse.regions import PRODUCTS
from tpu_lowering.ir import graphs


def products_using(node: fx.Node, members: Collection[fx.Node]) -> int:
    """How many matrix products use a member of a region, through views; 0 if anything else outside uses it too."""
    users = [user for user in _users(node) if user not in members]
    only = bool(graphs.device_kind(node.graph)) and all(user.target in PRODUCTS for user in users)
    return len(users) if only else 0


def _users(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    for user in node.users:
        found += _users(user) if any(graphs.is_call(user, view) for view in VIEWS) else [user]
    return found
