"""Whether the members of a region lie as those take them that compute with them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from tpu_lowering.fuse.space.kinds import Kind, kind_of
from tpu_lowering.fuse.space.spaces import AccessMap, aligned


def is_aligned(accesses: Mapping[fx.Node, AccessMap], sources: Mapping[fx.Node, AccessMap]) -> bool:
    """Whether each member's operands that are members too lie as it takes them. Where regions were merged that a value
    led from one to the other, it may run along the rows in one and along the columns in the other.

    Args:
        accesses: of each member.
        sources: the access of what each member that reduces or picks takes.
    """
    kinds = {member: kind_of(member) for member in accesses}
    return all(
        _takes(member, kind, sources.get(member, accesses[member]), used, accesses[used])
        for member, kind in kinds.items()
        if kind is not None and kind.name not in ("view", "constant")
        for used in member.all_input_nodes
        if used in accesses
    )


def _takes(member: fx.Node, kind: Kind, wanted: AccessMap, used: fx.Node, access: AccessMap) -> bool:
    shape = tuple(used.meta["val"].shape)
    own, sizes = aligned(access, len(wanted)), (1,) * (len(wanted) - len(shape)) + shape
    is_index = kind.name in ("pick", "place") and used is not member.args[0]  # it has places of its own in a row
    return all(
        own[at] == wanted[at] for at, size in enumerate(sizes) if size != 1 and not (is_index and at in kind.dims)
    )
