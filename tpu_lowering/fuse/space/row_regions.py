"""Regions: connected pointwise work and reductions over one iteration space, found in one walk over the graph.

A node joins the regions that its operands are in, all of which become one, if its own access fits their space and no
path leaves the region and comes back. A region has *rows*: the dimensions that a reduction takes together and whose
result meets the row again. They lie in one block. Reductions over other dimensions, such as the gradient of a weight,
are sums over the grid; nothing in the region may wait for them.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.alignment import is_aligned
from tpu_lowering.fuse.space.kinds import Kind, is_pointwise, kind_of
from tpu_lowering.fuse.space.spaces import AccessMap, Dim, Run, Space, aligned, dims_of, joined, mapping, split
from tpu_lowering.ir import graphs
from tpu_lowering.ir.contractions import contract

ROW_KINDS = ("reduction", "pick", "place", "along")
aten = compat.aten

PRODUCTS = frozenset((
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default, contract,
))  # fmt: skip
LONGEST_ROW = 1 << 21  # elements of a row that is reduced in two steps

LOOKAHEAD = 64  # nodes that are searched for the place where a reduction meets its row again


@dataclasses.dataclass(eq=False)
class RowRegion:
    """A region.

    Attributes:
        space: its iteration space.
        accesses: of each member; results of a reduction with several are members of their own.
        rows: dimensions of a row; empty so long as no reduction meets its row again.
        reductions: the dimensions that each member reduces.
        sources: the access of what each of those reduces.
        whole: dimensions whose places matter, so that none can be split.
    """

    space: Space
    accesses: dict[fx.Node, AccessMap]
    rows: frozenset[Dim] = frozenset()
    reductions: dict[fx.Node, frozenset[Dim]] = dataclasses.field(default_factory=dict)
    sources: dict[fx.Node, AccessMap] = dataclasses.field(default_factory=dict)
    whole: frozenset[Dim] = frozenset()

    def trial(self, operands: Sequence[fx.Node]) -> Trial:
        """The same space with some of the members alone, to try on it what a node of these operands needs."""
        accesses = {used: self.accesses[used] for used in operands if used in self.accesses}
        return Trial(Space(dict(self.space.sizes)), accesses, self.rows, whole=self.whole)

    def split(self, splits: Mapping[Dim, Run]) -> bool:
        """Puts others in the place of dimensions, wherever members run along them; False if one must stay whole."""
        if any(len(splits.get(dim, ())) > 1 for dim in self.whole):
            return False
        self.whole = dims_of(split((tuple(self.whole),), splits))
        self.rows = dims_of(split((tuple(self.rows),), splits))
        self.accesses = {node: split(access, splits) for node, access in self.accesses.items()}
        self.sources = {node: split(access, splits) for node, access in self.sources.items()}
        self.reductions = {node: dims_of(split((tuple(dims),), splits)) for node, dims in self.reductions.items()}
        return True

    def is_sum(self, node: fx.Node) -> bool:
        """Whether a member is a reduction over other dimensions than the rows'."""
        return node in self.reductions and not self.reductions[node] <= self.rows

    def waits(self, node: fx.Node) -> bool:
        """Whether a member is such a reduction, or one of its results."""
        return self.is_sum(node) or (node.target is operator.getitem and self.is_sum(node.args[0]))  # type: ignore[arg-type]


@dataclasses.dataclass(eq=False)
class Trial(RowRegion):
    """A region of which only a node's operands are copied; what happens to it is done to the whole once the node joins.

    Attributes:
        done: the splits, in order.
        taken_in: trials of regions that were taken in, whose members are split with its own.
    """

    done: list[Mapping[Dim, Run]] = dataclasses.field(default_factory=list)
    taken_in: list[Trial] = dataclasses.field(default_factory=list)

    def split(self, splits: Mapping[Dim, Run]) -> bool:
        for trial in (self, *self.taken_in) if splits else ():
            trial.done.append(splits)
        return super().split(splits)


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments that are tensors."""
    return [used for used in node.all_input_nodes if isinstance(used.meta.get("val"), torch.Tensor)]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def find_regions(graph: fx.Graph) -> list[RowRegion]:
    """The regions of a graph that have rows or may hold a matrix product, in the order of their first members."""
    return _Finder(graph).run()


class _Finder:
    """One walk over a graph. A region that is joined with a larger one is merged into it, and what leaves a region is
    kept with it, so that a node's joining takes no longer in a long region than in a short one.

    Attributes:
        region_of: the region of each node that is in one.
        exits: for each region, users of its members that came to be no members themselves.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.position = {node: at for at, node in enumerate(graph.nodes)}
        self.region_of: dict[fx.Node, RowRegion] = {}
        self.exits: dict[RowRegion, set[fx.Node]] = {}

    def run(self) -> list[RowRegion]:
        for node in self.graph.nodes:
            if node.target is operator.getitem and node.op == "call_function":
                self._follow(node)
            elif (kind := kind_of(node)) is not None and kind.name != "constant":
                self._place(node, kind)
        found = list(dict.fromkeys(self.region_of.values()))
        for region in found:
            region.accesses = dict(sorted(region.accesses.items(), key=lambda item: self.position[item[0]]))
        found = [region for region in found if region.rows or any(map(_takes_products, region.accesses))]
        return [region for region in found if is_aligned(region.accesses, region.sources)]

    def _follow(self, node: fx.Node) -> None:
        """A result of a reduction with several."""
        source = node.args[0]
        region = self.region_of.get(source)  # type: ignore[arg-type]
        if region is not None:
            self._add(node, region, region.accesses[source])  # type: ignore[index]

    def _place(self, node: fx.Node, kind: Kind) -> None:
        inside = [used for used in tensor_operands(node) if used in self.region_of]
        regions = list(dict.fromkeys(self.region_of[used] for used in inside))
        regions.sort(key=lambda region: (-len(region.rows), -len(region.accesses)))
        tries = [regions, *([region] for region in regions)] if len(regions) > 1 else [regions]
        for chosen in tries:
            if chosen and self._join(node, kind, chosen):
                return
        self._start(node, kind)

    def _start(self, node: fx.Node, kind: Kind) -> None:
        """A region of a node alone."""
        first = node.args[0] if kind.name in ROW_KINDS else node
        if kind.name == "view" or not isinstance(first, fx.Node):
            return
        space, access = self._dims_of_base(first) if kind.name == "reduction" else Space.of(shape_of(first))
        region = RowRegion(space, {})
        self._enter(node, kind, region, access)

    def _dims_of_base(self, node: fx.Node) -> tuple[Space, AccessMap]:
        """A space for a value, in the dimensions of what it is a view of, and its access."""
        base = node
        while graphs.is_call(base, aten.reshape.default) and matrix_product(base) is None:
            base = base.args[0]
            assert isinstance(base, fx.Node)
        space, access = Space.of(shape_of(base))
        found = space.regrouped(access, shape_of(node))
        return Space.of(shape_of(node)) if found is None else (space, found[0])

    def _join(self, node: fx.Node, kind: Kind, regions: Sequence[RowRegion]) -> bool:
        """Joins the regions of a node's operands, and the node to them."""
        if any(self._must_wait(used) for used in tensor_operands(node) if self.region_of.get(used) in regions):
            return False
        if len(regions) > 1 and kind.name != "pointwise":
            return False
        if self._comes_back(node, regions):
            return False
        ordered = sorted(regions, key=lambda region: -len(region.space.sizes))
        trials = [region.trial(tensor_operands(node)) for region in ordered]
        first = trials[0]
        if not all(self._take_in(node, first, other) for other in trials[1:]):
            return False
        access = self._access(node, kind, first)
        if access is None or not self._allows(node, kind, first, access):
            return False
        self._enter(node, kind, self._merged(ordered, trials), access)
        return True

    def _must_wait(self, used: fx.Node) -> bool:
        return self.region_of[used].waits(used)

    def _merged(self, regions: Sequence[RowRegion], trials: Sequence[Trial]) -> RowRegion:
        """Does to regions what was done to their trials; the first one, which then has all members."""
        for region, trial in zip(regions, trials, strict=True):
            for splits in trial.done:
                region.split(splits)
        merged, *others = regions
        merged.space = trials[0].space
        for other in others:
            merged.rows |= other.rows
            merged.whole |= other.whole
            merged.accesses |= other.accesses
            merged.sources |= other.sources
            merged.reductions |= other.reductions
            self.region_of |= dict.fromkeys(other.accesses, merged)
            self.exits[merged].difference_update(other.accesses)
            self.exits[merged].update(user for user in self.exits.pop(other) if self.region_of.get(user) is not merged)
        return merged

    def _take_in(self, node: fx.Node, merged: Trial, other: Trial) -> bool:
        """Takes the members of another region into one, in its dimensions; both are split where only one of them is."""
        for at in range(len(shape_of(node))):
            for region, like in ((merged, other), (other, merged)):
                if not self._split_like(node, at, region, like):
                    return False
        mine, theirs = self._aligned(node, [merged]), self._aligned(node, [other])
        names = None if mine is None or theirs is None else mapping(mine, theirs)
        names = None if names is None else merged.space.names_of(other.space, names)
        if names is None:
            return False
        if not other.split(names):
            return False
        if other.rows and merged.rows and other.rows != merged.rows:
            return False
        merged.rows |= other.rows
        merged.whole |= other.whole
        merged.accesses |= other.accesses
        merged.taken_in.append(other)
        return True

    def _split_like(self, node: fx.Node, at: int, region: RowRegion, like: RowRegion) -> bool:
        """Splits what a pointwise node's dimension is in a region as it is in another; False if it cannot be."""
        mine, theirs = self._aligned(node, [region]), self._aligned(node, [like])
        if mine is None or theirs is None:
            return False
        if not mine[at] or not theirs[at]:
            return True
        found = region.space.regrouped((mine[at],), [like.space.sizes[dim] for dim in theirs[at]])
        return found is not None and region.split(found[1])

    def _aligned(self, node: fx.Node, regions: Sequence[RowRegion]) -> AccessMap | None:
        """The access of a pointwise node, as far as its operands in some regions give it."""
        rank = len(shape_of(node))
        known = [
            aligned(region.accesses[used], rank)
            for used in tensor_operands(node)
            for region in regions
            if used in region.accesses
        ]
        return joined([((),) * rank, *known])

    def _access(self, node: fx.Node, kind: Kind, region: RowRegion) -> AccessMap | None:
        """The access of a node in a region; for a reduction, that of its first operand."""
        if kind.name == "pointwise":
            known = self._aligned(node, [region])
            return None if known is None else region.space.completed(known, shape_of(node))
        first = node.args[0]
        if kind.name == "place" and first not in region.accesses:  # a row of constants
            return None
        if not isinstance(first, fx.Node) or first not in region.accesses:
            return None
        access = region.accesses[first]
        if kind.name != "view":
            return access
        target = shape_of(node)
        if graphs.is_call(node, aten.expand.default):
            return region.space.completed(aligned(access, len(target)), target)
        found = region.space.regrouped(access, target)
        return None if found is None or not region.split(found[1]) else found[0]

    def _allows(self, node: fx.Node, kind: Kind, region: RowRegion, access: AccessMap) -> bool:
        """Whether a reduction fits the region's rows: now, or once it is known that the region has some."""
        if kind.name not in ROW_KINDS:
            return True
        dims = dims_of(tuple(access[dim] for dim in kind.dims))
        if not dims or (kind.name != "reduction" and len(dims) > 1):
            return False
        if kind.name != "reduction":
            return region.rows in (frozenset(), dims)
        if dims <= region.rows:
            return True
        if _meets_row(node, kind, region):
            return not region.rows or self._is_part_of_a_row(region, dims, access)
        return kind.adds and dims_of(access) == frozenset(region.space.sizes)

    def _is_part_of_a_row(self, region: RowRegion, dims: frozenset[Dim], access: AccessMap) -> bool:
        """Whether what is reduced over dimensions was reduced over all of the rows', so that both together are rows,
        and these are short."""
        return not dims_of(access) & region.rows and region.space.size((*region.rows, *dims)) <= LONGEST_ROW

    def _enter(self, node: fx.Node, kind: Kind, region: RowRegion, access: AccessMap) -> None:
        if kind.name in ROW_KINDS:
            dims = dims_of(tuple(access[dim] for dim in kind.dims))
            if not dims:
                return
            if kind.name != "reduction" or _meets_row(node, kind, region):
                region.rows |= dims
            if kind.name != "reduction":
                region.whole |= dims
            if kind.name in ("reduction", "pick"):
                region.sources[node] = access
                region.reductions[node] = dims
        if kind.name in ("reduction", "pick"):
            access = _reduced(node, kind, access)
        self._add(node, region, access)

    def _add(self, node: fx.Node, region: RowRegion, access: AccessMap) -> None:
        region.accesses[node] = access
        self.region_of[node] = region
        exits = self.exits.setdefault(region, set())
        exits.discard(node)
        exits.update(node.users)

    def _comes_back(self, node: fx.Node, merged: Sequence[RowRegion]) -> bool:
        """Whether a path leaves some regions and comes back, or to a node that is to join them, other regions taken as
        one node each."""
        pending = [user for region in merged for user in self.exits[region]]
        pending = [user for user in pending if user is not node and self.region_of.get(user) not in merged]
        seen: set[Any] = set()
        while pending:
            at = pending.pop()
            region = self.region_of.get(at)
            key = at if region is None else region
            if key in seen:
                continue
            seen.add(key)
            if region is None and self.position[at] > self.position[node]:
                continue
            for user in at.users if region is None else self.exits[region]:
                if user is node or self.region_of.get(user) in merged:
                    return True
                pending.append(user)
        return False


def _takes_products(node: fx.Node) -> bool:
    return any(matrix_product(used) is not None for used in tensor_operands(node))


def matrix_product(node: fx.Node) -> fx.Node | None:
    """The product of two matrices that a node is, or is a view of, with the same columns."""
    columns = shape_of(node)[-1:]
    while graphs.is_call(node, aten.reshape.default) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if len(node.users) > 1 or shape_of(node)[-1:] != columns:
            return None
    return node if any(graphs.is_call(node, target) for target in (aten.mm.default, aten.addmm.default)) else None


def is_own_product(node: fx.Node) -> bool:
    """Whether a node is a matrix product or a convolution, or a view of one, that one other node uses."""
    if len(node.users) != 1 or node.op != "call_function":
        return False
    if graphs.is_call(node, aten.reshape.default):
        return isinstance(node.args[0], fx.Node) and is_own_product(node.args[0])
    if is_pointwise(node):
        return any(is_own_product(used) for used in tensor_operands(node))
    return node.target in PRODUCTS


def _reduced(node: fx.Node, kind: Kind, access: AccessMap) -> AccessMap:
    """The access of a reduction's result, by that of its operand."""
    value = node.meta["val"]
    rank = len((value[0] if isinstance(value, (tuple, list)) else value).shape)
    kept = tuple(() if at in kind.dims else run for at, run in enumerate(access))
    return kept if rank == len(access) else tuple(run for at, run in enumerate(access) if at not in kind.dims)


def _meets_row(node: fx.Node, kind: Kind, region: RowRegion) -> bool:
    """Whether what a reduction gives is combined again with whole rows, of what it reduces or of its region, by way of
    pointwise work and reductions of smaller values, or inside: a variance takes the mean from them."""
    source = node.args[0]
    if kind.name == "reduction" and kind.passes > 1:
        return True
    if kind.name != "reduction" or not isinstance(source, fx.Node):
        return False
    whole, pending, seen = math.prod(shape_of(source)), list(node.users), {node}
    while pending and len(seen) < LOOKAHEAD:
        user = pending.pop(0)
        if user in seen:
            continue
        seen.add(user)
        if user.target is operator.getitem:
            pending += user.users
            continue
        found = kind_of(user)
        if found is None or found.name not in ("pointwise", "view", "reduction"):
            continue
        if found.name != "reduction" and math.prod(shape_of(user)) >= whole:
            return math.prod(shape_of(user)) in (whole, math.prod(region.space.sizes.values()))
        pending += user.users
    return False
