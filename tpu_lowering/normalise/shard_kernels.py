"""Kernel calls of a program that XLA partitions: each becomes one that runs on the parts of its operands.

What the user said of a tensor is held against its sizes here, where they are numbers.

Before::

    k = kernel_call(scale, (x, None))                       # x: float32[64, 128], its rows split along "data"

After::

    k = kernel_call(scale on parts of [16, 128], (x, None))
"""

from __future__ import annotations

from torch import fx

from tpu_lowering import errors
from tpu_lowering.analyse import partitions
from tpu_lowering.ir import graphs, shardings
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.kernels.sharded import ShardedKernel, shard
from tpu_lowering.options import Axes


def shard_kernels(graph: fx.Graph, mesh: Mesh) -> list[Action]:
    """Gives every kernel call of a normal graph a kernel that runs on parts, in place.

    Returns:
        What is to be said of those that no operand tells how to split.

    Raises:
        TpuLoweringError: TL713 for a sharding that does not fit its tensor; see ``sharded.shard``.
    """
    known: dict[fx.Node, Axes] = {}
    remarks: list[Action] = []
    for node in list(graph.nodes):
        if graphs.is_call(node, kernel_call):
            operands = [None if one is None else known.get(one) for one in graphs.operands_of(node)]
            kernel = shard(graphs.kernel_of(node), operands, mesh, graphs.source_line(node))
            graphs.set_kernel(node, kernel)
            if not kernel.is_split:
                reason = f"no operand of {kernel.name} is known to be split along a dimension that its rule names"
                remarks.append(Action("whole", node.name, graphs.source_line(node), "TL716", reason, 0))
            continue
        _refuse_what_does_not_fit(node, mesh)
        axes = _of_kernel(node) or partitions.axes_of(node, known, mesh)
        if axes is not None:
            known[node] = axes
    return remarks


def _refuse_what_does_not_fit(node: fx.Node, mesh: Mesh) -> None:
    axes, said_by = shardings.axes_of(node), node.meta.get(shardings.SAID_BY)
    why = None if axes is None else shardings.what_does_not_fit(axes, graphs.type_of(node).shape, mesh)
    if why is not None:
        raise errors.refuse(
            "TL713",
            str(said_by or node.name),
            why,
            "split another dimension, or pad this one to such a size",
            graphs.source_line(node),
        )


def _of_kernel(node: fx.Node) -> Axes | None:
    """How the result of a kernel lies."""
    found = partitions.item(node)
    if found is None or not graphs.is_call(found[0], kernel_call):
        return None
    kernel = graphs.kernel_of(found[0])
    return kernel.lies[found[1]] if isinstance(kernel, ShardedKernel) else None
