"""Convolve channels: a convolution of each channel by a few elements of its own becomes a sum of shifted products.

Before::

    made = aten.convolution(x, weight, bias, [1], [3], [1], False, [0], 64)      # x [2, 64, 96], 4 elements a kernel
    seen = read_box(made, box("0:2, 0:64, 0:96"))                                # made [2, 64, 99]

After::

    seen = convolve_channels(x, weight, bias, 3, 0, 1)

XLA gives such a convolution its channels last, which copies what is before and behind it; a sum fuses with both. Of a
causal one, which sees what is before alone, the ends that nothing reads are not computed. A kernel that reaches beyond
what is padded stays: XLA writes out each shifted part of a row that becomes shorter (libtpu 0.0.52).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.boxes import read_box
from tpu_lowering.ir.convolutions import convolve_channels

aten = compat.aten

TAPS = 8
"""So many elements a kernel may have. Of [2, 6144, 2048] in bfloat16, 3 to 5 elements, a tpu7x moves 96 MiB as a sum
and 874 as a convolution, by libtpu 0.0.52's compiler."""


@dataclasses.dataclass(frozen=True)
class ConvolveChannels:
    """See the module's docstring."""

    name: str = "convolve_channels"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        nodes = graph.find_nodes(op="call_function", target=aten.convolution.default)
        found = [(node, _channels(node)) for node in nodes]
        actions = [_sum(graph, node, channels) for node, channels in found if channels is not None]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Channels:
    """A convolution of channels.

    Attributes:
        source: [n, c, length].
        before, after: zeros around it.
        dilation: positions from one element of a kernel to the next.
        result: the convolution, or the part of it that is read.
    """

    source: fx.Node
    before: int
    after: int
    dilation: int
    result: fx.Node


def _channels(node: fx.Node) -> _Channels | None:
    """The convolution that a node is; None for another one."""
    given = graphs.bound(node)
    shape, kernel = graphs.type_of(given["input"]).shape, graphs.type_of(given["weight"]).shape
    is_of_channels = len(shape) == 3 and kernel == (shape[1], 1, kernel[2]) and given["groups"] == shape[1]
    if not is_of_channels or kernel[2] > TAPS or given["transposed"] or tuple(given["stride"]) != (1,):
        return None
    if 0 in graphs.type_of(node).shape or not node.meta["val"].dtype.is_floating_point:
        return None
    source, (before, after) = _unpadded(given["input"])
    before, after, (dilation,) = before + given["padding"][0], after + given["padding"][0], given["dilation"]
    if before + after < (kernel[2] - 1) * dilation:
        return None
    slices = [user for user in node.users if user.target is read_box]
    if not slices:
        return _Channels(source, before, after, dilation, node)
    (result, *others), length = slices, graphs.type_of(node).shape[-1]
    box: Any = result.args[1]
    *outer, (begin, end, step) = box.ranges
    is_whole = [stop - start for start, stop, _ in outer] == list(shape[:2])
    if others or len(node.users) > 1 or not is_whole or step != 1 or end <= begin:
        return None
    before, after = before - begin, after - (length - end)
    if min(before, after) <= -graphs.type_of(source).shape[2]:
        return None  # nothing but padding is read
    return _Channels(source, before, after, dilation, result)


def _unpadded(node: fx.Node) -> tuple[fx.Node, tuple[int, int]]:
    """What a value is, with zeros at both ends of its last dimension, and how many; itself with none otherwise."""
    if graphs.is_call(node, aten.constant_pad_nd.default):
        given = graphs.bound(node)
        before, after, *others = given["pad"]
        if given.get("value", 0) == 0 and not any(others) and min(before, after) >= 0:
            return given["self"], (before, after)
    return node, (0, 0)


def _sum(graph: fx.Graph, node: fx.Node, found: _Channels) -> Action:
    given = graphs.bound(node)
    taps = graphs.type_of(given["weight"]).shape[2]
    reason = f"{taps} products of each channel are summed, with {found.before} and {found.after} zeros around it"
    action = Action.on("moved", node, reason)
    with graphs.inserting_for(node, before=found.result):
        around = (found.before, found.after, found.dilation)
        made = graphs.call(graph, convolve_channels, found.source, given["weight"], given["bias"], *around)
    graphs.replace(found.result, made)
    return action
