"""How images lie in HBM that a forward saves for its backward: as convolutions have them, in both programs.

JAX gives a result of a program the order of dimensions that is padded least, which for images is mostly not the one
that XLA's convolutions have. The forward copies each then, and the backward copies it back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.xla import layouts
from tpu_lowering.ir import graphs
from tpu_lowering.runtime.aot.capture import Captured

aten = compat.aten


def lay_out(captured: Sequence[Captured]) -> list[Captured]:
    """A forward and its backward with the order in memory of each image that goes from one to the other; a forward
    alone, and what all devices of a mesh run, as it is."""
    if len(captured) != 2 or any(one.mesh is not None for one in captured):
        return list(captured)
    forward, backward = captured
    signature = forward.program.signature
    results = list(forward.program.output_nodes())
    given: list[layouts.Order | None] = [None] * len(results)
    taken: list[layouts.Order | None] = [None] * len(backward.program.inputs)
    slots = {position: slot for slot, position in enumerate(backward.program.inputs)}
    computed = [at for at, spec in enumerate(signature.outputs) if spec.is_computed]
    for number, at in enumerate(computed):
        order = order_of_images(results[number]) if signature.outputs[at].is_saved else None
        if order is not None and (slot := slots.get(at - forward.seen)) is not None:
            given[number] = taken[slot] = order
    if not any(taken):
        return list(captured)
    return [
        dataclasses.replace(forward, orders=(_defaults(forward.program.inputs), tuple(given))),
        dataclasses.replace(backward, orders=(tuple(taken), _defaults(backward.program.output_nodes()))),
    ]


def order_of_images(result: fx.Node) -> layouts.Order | None:
    """The dimensions of a result from the outermost in memory to the innermost, if they are an image's and JAX would
    choose others; else None."""
    if not graphs.source_line(result) and result.target is aten.permute.default:  # into the order in memory
        (result,) = result.all_input_nodes
    order = layouts.order_of(result)
    shape = graphs.type_of(result).shape
    is_images = order is not None and order == layouts.order_of_images(result)
    return order if is_images and order != layouts.order_in_memory(shape) else None


def _defaults(of: Sequence[object]) -> tuple[None, ...]:
    return (None,) * len(of)
