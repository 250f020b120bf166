"""Merge equal: one node for nodes that compute the same of the same operands, so that a region sees who shares a value.

Before::

    a = aten.exp(x)
    b = aten.exp(x)
    add = aten.add(a, b)

After::

    a = aten.exp(x)
    add = aten.add(a, a)
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering.fuse.rows.expand import merge_equal
from tpu_lowering.ir.actions import Action


@dataclasses.dataclass(frozen=True)
class MergeEqual:
    """See the module's docstring."""

    name: str = "merge_equal"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        merge_equal(graph)
        return []
