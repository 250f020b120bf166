"""Parameters that ranks hold in parts are gathered when they are needed, not all of them first.

Before::

    whole_1 = all_gather(part_1, 0, axes, 2)
    y = mm(x, whole_1)
    whole_2 = all_gather(part_2, 0, axes, 2)         # XLA begins with both, and holds both
    z = mm(y, whole_2)

After::

    whole_1 = all_gather(part_1, 0, axes, 2)
    y = mm(x, whole_1)
    late = after(part_2, y, axes, False)             # for a chip after x: gathered while y is computed
    whole_2 = all_gather(late, 0, axes, 2)
    z = mm(y, whole_2)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpu_lowering.ir import collectives, graphs


def gather_late(graph: fx.Graph, ahead: bool) -> None:
    """Has each gathering of an input wait for what the whole is used with, in place.

    Args:
        graph: with collectives of this package.
        ahead: whether one may be gathered while the whole before it is used, as a chip can.
    """
    gathers = [n for n in graph.nodes if graphs.is_call(n, collectives.all_gather) and _is_of_inputs(n)]
    partners = [(node, partner) for node in gathers if (partner := _partner(node)) is not None]
    waits = [partner for _, partner in partners]
    if ahead:
        waits = [None, *waits][: len(waits)]  # type: ignore[list-item]
    for (node, _), wanted in zip(partners, waits, strict=True):
        if wanted is None or _depends_on(wanted, node):
            continue
        part: Any = node.args[0]
        with graphs.inserting_for(node, after=True, before=wanted):
            late = graph.call_function(collectives.after, (part, wanted, node.args[2], ahead))
        late.meta["val"] = part.meta["val"]
        node.args = (late, *node.args[1:])
    graphs.sort_by_use(graph)


def _partner(gathered: fx.Node) -> fx.Node | None:
    """The tensor that a gathered whole is first used with, if that is computed; views of the whole are no use."""
    seen, user = gathered, next(iter(gathered.users), None)
    while user is not None and _is_form(user):
        seen, user = user, next(iter(user.users), None)
    others = [] if user is None or user.op == "output" else user.all_input_nodes
    tensors = [one for one in others if one is not seen and isinstance(one.meta.get("val"), torch.Tensor)]
    return next((one for one in tensors if not _is_of_inputs(one)), None)


def _is_form(node: fx.Node) -> bool:
    """Whether a node gives the elements of its one operand, or something computed of them alone."""
    return node.op == "call_function" and len(node.all_input_nodes) == 1


def _is_of_inputs(node: fx.Node) -> bool:
    """Whether a value is there from the start: an input, or one in another form."""
    while _is_form(node):
        (node,) = node.all_input_nodes
    return node.op in ("placeholder", "get_attr")


def _depends_on(node: fx.Node, other: fx.Node) -> bool:
    found, ahead = {node}, [node]
    while ahead:
        for used in ahead.pop().all_input_nodes:
            if used is other:
                return True
            if used not in found:
                found.add(used)
                ahead.append(used)
    return False
