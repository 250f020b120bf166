"""Compare scattered: a number that is placed into equal elements, one to a row, becomes a comparison of every place.

Before::

    full = aten.full([4096, 32000], 0)
    placed = aten.scatter(full, 1, index, -1)

After::

    places = aten.reshape(aten.arange(0, 32000, 1), [1, 32000])
    placed = aten.where(aten.eq(places, index), -1, full)

It is the gradient of a ``gather``, and of a cross entropy with it. XLA computes the comparison inside whatever uses
the rows; for a scatter it writes them, and on a TPU once more flat (libtpu 0.0.52).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_constant, kind_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class CompareScattered:
    """See the module's docstring."""

    name: str = "compare_scattered"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        for node in list(graph.nodes):
            _compare(graph, node)
        graphs.eliminate_dead_code(graph)
        return []


def _compare(graph: fx.Graph, node: fx.Node) -> None:
    kind = kind_of(node)
    if kind is None or kind.name != "place":
        return
    given = graphs.bound(node)
    if not is_constant(given["self"]):
        return
    rows, (dim,) = given["self"].meta["val"], kind.dims
    with graphs.inserting_for(node):
        places = graphs.call(graph, aten.arange.start_step, 0, rows.shape[dim], 1, dtype=torch.int32)
        shape = [size if at == dim else 1 for at, size in enumerate(rows.shape)]
        places = graphs.call(graph, aten.reshape.default, places, shape)
        found = graphs.call(graph, aten.eq.Tensor, places, given["index"])
        value = graphs.call(graph, aten.full.default, [1] * rows.dim(), given["value"], dtype=rows.dtype)
        placed = graphs.call(graph, aten.where.self, found, value, given["self"])
    graphs.replace(node, placed)
