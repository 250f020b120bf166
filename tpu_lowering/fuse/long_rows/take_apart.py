"""Reductions of rows that are too long for VMEM, taken apart into sums and maxima that blocks of a row add up to.

Before::

    var = aten.var.correction(x, [1], correction=0, keepdim=True)
    log_softmax = aten.sub(aten.sub(x, amax), log)
    gather = aten.gather(log_softmax, 1, index)

After::

    mean = aten.mean(x, [1], True)
    sub = aten.sub(x, mean)
    sum = aten.sum(aten.mul(sub, sub), [1], True)
    var = aten.div(sum, 4000000)
    gather = aten.gather(x, 1, index)
    log_softmax = aten.sub(aten.sub(gather, amax), log)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.rows.expand import ORIGIN, PART_OF, decomposition_of, inline, merge_equal
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs

aten = compat.aten


def take_apart(graph: fx.Graph, members: Sequence[fx.Node]) -> set[fx.Node]:
    """Takes the members of a region apart, in place.

    Returns:
        What they are now.
    """
    alive = set(graph.nodes)
    found = {member for member in members if member in alive}
    for member in [member for member in members if member in alive]:
        kind = kind_of(member)
        if kind is None:
            continue
        if kind.name == "reduction" and kind.passes > 1 and (run := _run(member, kind.dims)) is not None:
            found |= set(inline(graph, member, tensor_operands(member), run))
        elif kind.name == "pick":
            found |= _pick_first(graph, member)
    merge_equal(graph)
    return found & set(graph.nodes)


def _run(node: fx.Node, dims: tuple[int, ...]) -> Callable[..., Any] | None:
    """What computes a reduction with several inside, in float32 as eager does; None if it is not known."""
    if node.target in (aten.var.correction, aten.var_mean.correction):
        given = graphs.bound(node)
        correction = 1 if given["correction"] is None else given["correction"]
        whole = functools.partial(_variance, dims=dims, correction=correction, keepdim=bool(given["keepdim"]))
        return whole if node.target is aten.var_mean.correction else lambda x: whole(x)[0]
    decomposition = decomposition_of(node.target)
    if decomposition is None or len(tensor_operands(node)) != 1:
        return None

    def run(x: torch.Tensor) -> Any:
        args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), lambda _: x.float())
        return decomposition(*args, **kwargs).to(x.dtype)

    return run if isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dtype.is_floating_point else None


def _variance(
    x: torch.Tensor, dims: tuple[int, ...], correction: float, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean."""
    wide = x.float()
    mean = wide.mean(dims, True)
    away = wide - mean
    freedom = max(0.0, math.prod(x.shape[dim] for dim in dims) - correction)
    variance = (away * away).sum(dims, keepdim) / freedom
    shape = variance.shape
    return variance.to(x.dtype), mean.reshape(shape).to(x.dtype)


def _pick_first(graph: fx.Graph, pick: fx.Node) -> set[fx.Node]:
    """Computes of each row's one element what was computed of whole rows to pick it from."""
    given = graphs.bound(pick)
    new: set[fx.Node] = set()

    def picked(node: fx.Node) -> fx.Node:
        source = _row_source(node, given["dim"])
        if source is None:
            found = graphs.call(graph, aten.gather.default, node, given["dim"], given["index"])
        else:
            args, kwargs = compat.map_arg(
                (node.args, dict(node.kwargs)), lambda used: picked(used) if used is source else used
            )
            found = graphs.call(graph, node.target, *args, **kwargs)  # type: ignore[arg-type]
        found.meta |= {key: node.meta[key] for key in (ORIGIN, PART_OF) if key in node.meta}
        new.add(found)
        return found

    with graphs.inserting_for(pick):
        result = picked(given["self"])
    graphs.replace(pick, result)
    return new


def _row_source(node: fx.Node, dim: int) -> fx.Node | None:
    """The one operand of pointwise work that runs along a dimension, if it is no narrower than the work: comparing
    places gives a mask for elements of 4 bytes."""
    kind = kind_of(node)
    if kind is None or kind.name != "pointwise":
        return None
    from_right = dim % len(shape_of(node)) - len(shape_of(node))
    running = [used for used in tensor_operands(node) if shape_of(used)[from_right:][:1] not in ((), (1,))]
    running = [used for used in running if len(shape_of(used)) >= -from_right]
    if len(running) != 1 or shape_of(running[0]) != shape_of(node):
        return None
    return running[0] if running[0].meta["val"].itemsize >= node.meta["val"].itemsize else None
