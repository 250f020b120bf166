"""Nodes put into a joint graph, before AOTAutograd parts it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from torch import fx

from tpu_lowering.ir import graphs

PARTITIONING = ("recompute", "ac_graph_id", "partitioner_tag")
"""What AOTAutograd's partitioner reads of a node: whether to compute it again, and that it belongs to the backward."""


@contextlib.contextmanager
def inserting_for(node: fx.Node) -> Generator[None]:
    """Inserts before a node, with its source line and what the partitioner reads of it."""
    with graphs.recorded(node.graph) as new, graphs.inserting_for(node):
        yield
    for inserted in new:
        inserted.meta.update({key: node.meta[key] for key in PARTITIONING if key in node.meta})
