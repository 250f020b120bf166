"""What a region takes and gives, and what it costs: HBM bytes as one kernel, and as XLA would run it.

XLA fuses pointwise work, and reductions of one operand, into single passes, but starts a new pass over the rows for
every reduction that waits for another: a softmax reads its rows for the maximum, for the sum and for the quotient
(``bytes_by_xla``; the compiled programs of ``bench fusion`` say the same). One kernel reads them once.
"""

from __future__ import annotations

import collections
import dataclasses
import operator
from collections.abc import Collection, Mapping, Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_constant, kind_of
from tpu_lowering.fuse.space.row_regions import RowRegion, is_own_product, matrix_product, shape_of, tensor_operands
from tpu_lowering.fuse.space.spaces import AccessMap, Dim, Run, Space, aligned, dims_of
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.into_users import passes_using
from tpu_lowering.fuse.xla.layouts import bytes_in_kernel, bytes_of
from tpu_lowering.fuse.xla.one_pass import is_in_one_pass
from tpu_lowering.ir import graphs

aten = compat.aten


MemoryAxes = tuple[tuple[Dim | None, int], ...]
"""For each axis of a value in memory the dimension that it runs along, None where it lies whole in every block, and its
size."""


@dataclasses.dataclass(frozen=True)
class RowOperand:
    """A tensor that a region takes.

    Attributes:
        node: what it is, before any expanding view.
        access: of ``node`` in the region's space.
        axes: of a factor of a matrix product, which has one that is summed over; empty for any other.
        fine: of ``node`` in the space that the region had before it got a kernel's axes, if it did.
    """

    node: fx.Node
    access: AccessMap
    axes: MemoryAxes = ()
    fine: AccessMap = ()

    def in_memory(self, space: Space) -> MemoryAxes:
        """The axes that a kernel is given: those of a factor, or one for each dimension of the space, of size 1 where
        the operand does not run along it."""
        dims = dims_of(self.access)
        return self.axes or tuple((dim, size) if dim in dims else (None, 1) for dim, size in space.sizes.items())

    def summed(self) -> int:
        """The size of the axis that a product sums over; 1 of what is no factor."""
        return next((size for dim, size in self.axes if dim is None), 1)

    def after(self, replaced: Mapping[fx.Node, fx.Node]) -> RowOperand:
        """The same operand in a graph where some nodes gave way to others."""
        return dataclasses.replace(self, node=replaced.get(self.node, self.node))


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product that a kernel computes on its blocks, summing over whole rows of both factors.

    Attributes:
        node: ``aten.mm`` or ``aten.addmm``.
        left: [rows, k].
        right: [k, n], or [n, k] if it is transposed.
        transposed: whether ``right`` is.
        bias: [n]; what is added.
    """

    node: fx.Node
    left: RowOperand
    right: RowOperand
    transposed: bool
    bias: RowOperand | None

    def operands(self) -> list[RowOperand]:
        return [self.left, self.right, *([] if self.bias is None else [self.bias])]

    def after(self, replaced: Mapping[fx.Node, fx.Node]) -> Product:
        bias = None if self.bias is None else self.bias.after(replaced)
        left, right = self.left.after(replaced), self.right.after(replaced)
        return dataclasses.replace(self, left=left, right=right, bias=bias)


@dataclasses.dataclass(frozen=True)
class Lying:
    """How the arrays of a kernel lie, if not in one axis for each dimension of a space.

    Attributes:
        space: the space.
        axes: the dimensions of each axis.
        outputs: accesses of the plan's outputs in the space.
    """

    space: Space
    axes: tuple[Run, ...]
    outputs: Mapping[fx.Node, AccessMap]


@dataclasses.dataclass(frozen=True, eq=False)
class RowPlan:
    """A region that is ready to become a kernel.

    Attributes:
        region: its space, rows and accesses.
        members: what the kernel computes, in the graph's order.
        bound: for each member, what stands for each of its tensor operands that is no member.
        outputs: the members whose values are needed outside.
        products: the members that are matrix products, or views of one that is no member.
        lying: how the kernel's arrays lie, if the region's space was made of their axes.
        groups: how many elements each reduction takes together along the last axis, if not all.
    """

    region: RowRegion
    members: tuple[fx.Node, ...]
    bound: dict[tuple[fx.Node, fx.Node], RowOperand]
    outputs: tuple[fx.Node, ...]
    products: Mapping[fx.Node, Product] = dataclasses.field(default_factory=dict)
    lying: Lying | None = None
    groups: Mapping[fx.Node, int] = dataclasses.field(default_factory=dict)

    def operands(self) -> list[RowOperand]:
        """Each operand once, in the order of first use."""
        return list(dict.fromkeys(self.bound.values()))

    def after(self, replaced: Mapping[fx.Node, fx.Node]) -> RowPlan:
        """The same plan in a graph where some nodes outside it gave way to others."""

        def now(node: fx.Node) -> fx.Node:
            return replaced.get(node, node)

        bound = {(m, now(used)): operand.after(replaced) for (m, used), operand in self.bound.items()}
        products = {member: product.after(replaced) for member, product in self.products.items()}
        return dataclasses.replace(self, bound=bound, products=products)


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
    return sum(nbytes(operand.node) for operand in plan.operands()) + sum(map(nbytes, plan.outputs))


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


def bytes_by_xla(plan: RowPlan) -> int:
    """Each operand read once for every pass that needs it, each output written once; but of an output that is computed
    inside what uses it, what that reads instead of it."""
    level, passes = _levels(plan), collections.defaultdict[fx.Node, set[int]](set)
    written: dict[fx.Node, int] = {}
    moved = 0
    for sink in plan.members:
        ends = ends_pass(plan.region, sink)
        if ends:
            first = level[sink] - _passes(plan, sink)
            for at in range(first, max(level[sink], first + 1)):
                for node in _read_for(plan, sink, at, written):
                    passes[node].add(at)
        if sink not in plan.outputs:
            continue
        read = _read_for(plan, sink, level[sink], written)
        instead = sum(map(nbytes, read))
        if not ends and (users := passes_using(sink, plan.members)):
            moved += users * (instead - nbytes(sink))
            continue
        for node in () if ends else read:
            passes[node].add(level[sink])
        moved += nbytes(sink)
        if nbytes(sink) <= instead:
            written[sink] = level[sink]
    return moved + sum(nbytes(node) * len(found) for node, found in passes.items())


def nbytes(node: fx.Node) -> int:
    """Bytes of a value as XLA places it."""
    return bytes_of(node)


def _is_whole_sum(region: RowRegion, member: fx.Node) -> bool:
    """Whether a member is no sum over the grid, or one over values that run along every dimension."""
    if not region.is_sum(member):
        return not region.waits(member)
    return dims_of(region.sources[member]) == frozenset(region.space.sizes)


def _without_dot_epilogues(region: RowRegion, members: list[fx.Node]) -> list[fx.Node]:
    """Without the pointwise work that XLA fuses into the matrix product which it follows, if that is no dearer."""
    inside = list(members)
    for member in members:
        kind = kind_of(member)
        if kind is None or any(used in inside for used in tensor_operands(member)):
            continue
        if kind.name == "view":
            inside.remove(member)
        if kind.name != "pointwise":
            continue
        products = [used for used in tensor_operands(member) if is_own_product(used)]
        outside = any(user not in inside for user in member.users)
        saved = sum(2 * nbytes(used) for used in products) + (nbytes(member) if outside else 0)
        if products and 2 * nbytes(member) <= saved:
            inside.remove(member)
    return inside


def plan_of(region: RowRegion, members: Sequence[fx.Node]) -> RowPlan | None:
    """A plan for some members of a region, less what nothing needs or what is as cheap outside."""
    kept = list(members)
    outputs: list[fx.Node] = []
    for member in members:
        needed = [user for user in member.users if user not in kept]
        if not needed:
            continue
        kind = kind_of(member)
        if kind is not None and kind.name == "view":
            base = base_of(member, kept)
            outputs += [base] if base in kept and not _is_cheap_again(base, kept) else []
        elif member.target is not operator.getitem and isinstance(member.meta["val"], (tuple, list)):
            continue  # its results are members
        elif not _is_cheap_again(member, kept):
            outputs.append(member)
    outputs = [member for member in kept if member in outputs]
    live: set[fx.Node] = set()
    for member in reversed(kept):
        if member in outputs or any(user in live for user in member.users):
            live.add(member)
    kept = [member for member in kept if member in live]
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


def _is_cheap_again(member: fx.Node, members: Sequence[fx.Node]) -> bool:
    """Whether computing a member again, outside, reads no more than its value would: it is a cast or the like."""
    kind = kind_of(member)
    operands = tensor_operands(member)
    if kind is None or kind.name != "pointwise" or any(used in members for used in operands):
        return False
    return sum(nbytes(used) for used in operands) <= nbytes(member)


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


def _passes(plan: RowPlan, node: fx.Node) -> int:
    kind = kind_of(node)
    if kind is None or not ends_pass(plan.region, node) or is_in_one_pass(plan.region, node, plan.outputs):
        return 0
    if kind.name != "along":
        return kind.passes
    return HEURISTICS.rotation_passes if graphs.is_call(node, aten.roll.default) else HEURISTICS.running_sum_passes


def ends_pass(region: RowRegion, node: fx.Node) -> bool:
    """Whether XLA goes over rows to compute a node, and again for what is computed of it."""
    kind = kind_of(node)
    return node in region.reductions or (kind is not None and kind.name == "along")


def _levels(plan: RowPlan) -> dict[fx.Node, int]:
    """For each member, how many reductions over whole rows one after another its value waits for."""
    level: dict[fx.Node, int] = {}
    for member in plan.members:
        before = max((level[used] for used in member.all_input_nodes if used in level), default=0)
        level[member] = before + _passes(plan, member)
    return level


def _read_for(plan: RowPlan, sink: fx.Node, at: int, written: Mapping[fx.Node, int]) -> set[fx.Node]:
    """What one pass over the rows reads to compute a member: the operands that it has without another reduction, which
    also stand for rotated rows and running sums, as XLA writes those and reads them in place of operands.

    Args:
        plan: what the member is of.
        sink: the member.
        at: which pass it is.
        written: outputs that are read in place of what they are computed of, each with the pass that writes it.
    """
    found: set[fx.Node] = set()
    pending, seen = [sink], {sink}
    while pending:
        node = pending.pop()
        if node is not sink and node in plan.region.reductions:
            continue
        if node is not sink and written.get(node, at) < at:
            found.add(node)
            continue
        for used in node.all_input_nodes:
            if (node, used) in plan.bound:
                found.add(plan.bound[node, used].node)
            elif used in plan.region.accesses and used not in seen:
                seen.add(used)
                pending.append(used)
    return found
