"""Delay reshapes: pointwise work on a contraction is computed before its axes are joined.

Before::

    result = reshape(contract('abcf,acdef->abcde', x, y), [16, 256, 64, 64])        # of [16, 256, 8, 8, 64]
    scaled = aten.mul(result, decay)                                                # [16, 256, 64, 1]

After::

    scaled = reshape(aten.mul(contract(...), reshape(decay, [16, 256, 8, 8, 1])), [16, 256, 64, 64])

XLA writes what it reshapes between a product and the work behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs
from tpu_lowering.ir.contractions import contract
from tpu_lowering.ir.reshapes import NotWhole, digits_of
from tpu_lowering.normalise.views import RESHAPES


def delay_reshapes(graph: fx.Graph) -> None:
    """Moves reshapes of contractions behind the pointwise work that reads them."""
    waiting = [user for node in graph.find_nodes(op="call_function", target=contract) for user in node.users]
    some = False
    while waiting:
        node = waiting.pop()
        parts = _parts(node)
        moved = [] if parts is None else [_moved(graph, user, node, parts) for user in list(node.users)]
        waiting += [made for made in moved if made is not None]
        some = some or any(made is not None for made in moved)
    if some:
        graphs.eliminate_dead_code(graph)


def _parts(node: fx.Node) -> list[list[int]] | None:
    """The sizes that a reshape joins to each of its dimensions; None if it does not only that."""
    if node.op != "call_function" or node.target not in RESHAPES:
        return None
    source = shape_of(node.args[0])  # type: ignore[arg-type]
    try:
        dims = list(digits_of(source, shape_of(node)))
    except NotWhole:
        return None
    parts = [[digit.size for digit in digits] for digits in dims]
    return parts if [size for part in parts for size in part] == [size for size in source if size != 1] else None


def _moved(graph: fx.Graph, user: fx.Node, node: fx.Node, parts: Sequence[Sequence[int]]) -> fx.Node | None:
    """Pointwise work on what a reshape is of, reshaped; None where that would reshape another operand as large."""
    if not is_pointwise(user) or shape_of(user) != shape_of(node):
        return None
    now: dict[fx.Node, fx.Node] = {}
    smaller: list[fx.Node] = []
    for used in tensor_operands(user):
        if _parts(used) == parts and shape_of(used) == shape_of(node):
            now[used] = used.args[0]  # type: ignore[assignment]
        elif 2 * math.prod(shape_of(used)) <= math.prod(shape_of(node)):
            smaller.append(used)
        else:
            return None
    sizes = shape_of(now[node])
    if any(shape_of(one) != sizes for one in now.values()):
        return None
    with graphs.inserting_for(user):
        for used in smaller:
            now[used] = graphs.reshaped(graph, used, _apart(shape_of(used), parts))
        made = graphs.reshaped(graph, graphs.called_again(graph, user, now), shape_of(user))
    graphs.replace(user, made)
    return made


def _apart(shape: Sequence[int], parts: Sequence[Sequence[int]]) -> list[int]:
    """The sizes of an operand that broadcasts with a reshape, as it broadcasts with what that is of."""
    aligned = parts[len(parts) - len(shape) :]
    return [size for own, part in zip(shape, aligned, strict=True) for size in (part if own != 1 else [1] * len(part))]
