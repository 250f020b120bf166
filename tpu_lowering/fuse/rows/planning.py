"""Which members of a region one kernel computes, with what it takes and gives, if that moves fewer bytes than XLA
does by itself."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_constant, kind_of
from tpu_lowering.fuse.space.row_plans import RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import RowRegion, is_own_product, matrix_product, shape_of, tensor_operands
from tpu_lowering.fuse.space.spaces import AccessMap, Space, aligned, dims_of
from tpu_lowering.fuse.xla.bytes import bytes_by_xla, ends_pass
from tpu_lowering.fuse.xla.layouts import bytes_in_kernel, bytes_of
from tpu_lowering.ir import graphs

aten = compat.aten


def plan(region: RowRegion) -> RowPlan | None:
    """The cheapest plan for a region; None if one kernel moves no fewer bytes than XLA."""
    best = plan_of(region, _without_dot_epilogues(region, computed(region)))
    if best is None or not any(ends_pass(region, member) and not region.is_sum(member) for member in best.members):
        return None
    return best if least_bytes(best) < bytes_by_xla(best) else None


def computed(region: RowRegion) -> list[fx.Node]:
    """The members of a region that one kernel can compute."""
    return [member for member in region.accesses if _is_whole_sum(region, member)]


def least_bytes(plan: RowPlan) -> int:
    """Each operand read once, each output written once, as XLA places them."""
    return sum(bytes_of(operand.node) for operand in plan.operands()) + sum(map(bytes_of, plan.outputs))


def bytes_as_kernel(plan: RowPlan) -> int:
    """Each operand read once, each output written once, in the arrays of a kernel, padding included."""
    space, accesses = plan.region.space, plan.region.accesses
    moved = 0
    for operand in plan.operands():
        moved += bytes_in_kernel(operand.node, [size for _, size in operand.in_memory(space)])
    for node in plan.outputs:
        shape = [size if dim in dims_of(accesses[node]) else 1 for dim, size in space.sizes.items()]
        moved += bytes_in_kernel(node, shape)
    return moved


def _is_whole_sum(region: RowRegion, member: fx.Node) -> bool:
    """Whether a member is no sum over the grid, or one over values that run along every dimension."""
    if not region.is_sum(member):
        return not region.waits(member)
    return dims_of(region.sources[member]) == frozenset(region.space.sizes)


def _without_dot_epilogues(region: RowRegion, members: list[fx.Node]) -> list[fx.Node]:
    """Without the pointwise work that XLA fuses into the matrix product which it follows, if that is no dearer."""
    inside = dict.fromkeys(members)
    for member in members:
        kind = kind_of(member)
        if kind is None or any(used in inside for used in tensor_operands(member)):
            continue
        if kind.name == "view":
            del inside[member]
        if kind.name != "pointwise":
            continue
        products = [used for used in tensor_operands(member) if is_own_product(used)]
        outside = any(user not in inside for user in member.users)
        saved = sum(2 * bytes_of(used) for used in products) + (bytes_of(member) if outside else 0)
        if products and 2 * bytes_of(member) <= saved:
            del inside[member]
    return list(inside)


def plan_of(region: RowRegion, members: Sequence[fx.Node]) -> RowPlan | None:
    """A plan for some members of a region, less what nothing needs or what is as cheap outside."""
    inside = set(members)
    needed: set[fx.Node] = set()
    for member in members:
        if inside.issuperset(member.users):
            continue
        kind = kind_of(member)
        if kind is not None and kind.name == "view":
            base = base_of(member, inside)
            needed |= {base} if base in inside and not _is_cheap_again(base, inside) else set()
        elif member.target is not operator.getitem and isinstance(member.meta["val"], (tuple, list)):
            continue  # its results are members
        elif not _is_cheap_again(member, inside):
            needed.add(member)
    outputs = [member for member in members if member in needed]
    live: set[fx.Node] = set()
    for member in reversed(members):
        if member in needed or not live.isdisjoint(member.users):
            live.add(member)
    kept = [member for member in members if member in live]
    bound: dict[tuple[fx.Node, fx.Node], RowOperand] = {}
    for member in kept:
        for used in tensor_operands(member):
            if used not in live and not is_constant(used):
                operand = bound_operand(region, member, used)
                if operand is None:
                    return None
                bound[member, used] = operand
    return RowPlan(region, tuple(kept), bound, tuple(outputs)) if outputs else None


def base_of(node: fx.Node, members: Collection[fx.Node]) -> fx.Node:
    """What a view is a view of."""
    while (kind := kind_of(node)) is not None and kind.name == "view" and node in members:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_cheap_again(member: fx.Node, members: Collection[fx.Node]) -> bool:
    """Whether computing a member again, outside, reads no more than its value would: it is a cast or the like."""
    kind = kind_of(member)
    operands = tensor_operands(member)
    if kind is None or kind.name != "pointwise" or any(used in members for used in operands):
        return False
    return sum(bytes_of(used) for used in operands) <= bytes_of(member)


def bound_operand(region: RowRegion, member: fx.Node, used: fx.Node) -> RowOperand | None:
    """How a member takes a value from outside: what it is an expanding view of, and along which dimensions it runs."""
    kind, access = kind_of(member), region.accesses[member]
    if member in region.reductions and used is member.args[0]:
        if kind is not None and kind.name == "pick":  # an index counts places, repeated or not
            return RowOperand(used, region.sources[member])
        return _viewed(region.space, used, region.sources[member])
    if kind is not None and kind.name in ("pick", "place"):  # the index has the result's shape
        source = region.accesses.get(member.args[0], access)  # type: ignore[arg-type]
        index = tuple(() if at in kind.dims else run for at, run in enumerate(source))
        return RowOperand(used, index)
    shape = shape_of(used)
    own = access[len(access) - len(shape) :]
    return _viewed(region.space, used, tuple(() if size == 1 else run for run, size in zip(own, shape, strict=True)))


def _viewed(space: Space, node: fx.Node, access: AccessMap) -> RowOperand:
    """The operand that a value is a view of, as far as it runs along whole dimensions of the space and is no
    product."""
    while isinstance(node.args[0] if node.args else None, fx.Node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if graphs.is_call(node, aten.expand.default):
            access = aligned_back(access, shape_of(source))
        elif graphs.is_call(node, aten.reshape.default) and matrix_product(node) is None:
            found = Space(dict(space.sizes)).regrouped(access, shape_of(source))
            if found is None or found[1]:
                break
            access = found[0]
        else:
            break
        node = source
    return RowOperand(node, access)


def aligned_back(access: AccessMap, shape: Sequence[int]) -> AccessMap:
    """The access of an expanded value's source."""
    own = access[len(access) - len(shape) :] if shape else ()
    return tuple(() if size == 1 else run for run, size in zip(aligned(own, len(shape)), shape, strict=True))
