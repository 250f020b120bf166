"""Fuse rows: a region that reduces rows and uses them again becomes one kernel call.

Before::

    amax = aten.amax(x, [-1], True)
    sub = aten.sub(x, amax)
    exp = aten.exp(sub)
    sum = aten.sum(exp, [-1], True)
    div = aten.div(exp, sum)

After::

    k = kernel_call(amax_sum_rows, (x,))
    div = getitem(k, 0)

XLA reads ``x`` three times for this; the kernel reads it once, row by row. A region that one kernel would not run in
fewer bytes stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.choose.choices import Candidates, Choice, Chooser
from tpu_lowering.fuse.compare_scattered import compare_places
from tpu_lowering.fuse.long_rows.block_graph import RunningBody
from tpu_lowering.fuse.long_rows.kernel_source import write_pass
from tpu_lowering.fuse.long_rows.passes import BlockPass, one_pass_each, pass_plan
from tpu_lowering.fuse.long_rows.take_apart import take_apart
from tpu_lowering.fuse.rows.block_graph import BlockGraph, held_as, summed_dims
from tpu_lowering.fuse.rows.expand import ORIGIN, PART_OF, expand, merge_equal, parts_of
from tpu_lowering.fuse.rows.kernel_axes import arranged, as_axes, copied_by_xla, restored
from tpu_lowering.fuse.rows.kernel_source import plain_form, write
from tpu_lowering.fuse.rows.planning import (
    RowOperand,
    RowPlan,
    base_of,
    bytes_as_kernel,
    bytes_by_xla,
    computed,
    ends_pass,
    plan,
)
from tpu_lowering.fuse.rows.products import bytes_apart, plan_with_products
from tpu_lowering.fuse.rows.row_kernel import RowKernel, row_kernel
from tpu_lowering.fuse.rows.tiles import STEP_BYTES, BlockValue, TiledSpace, Tiling, tile, tile_products
from tpu_lowering.fuse.space.row_regions import find_regions, shape_of
from tpu_lowering.fuse.space.spaces import dims_of
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.kept_in_vmem import is_held
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.types import TensorType

aten = compat.aten

STEPS = (STEP_BYTES, 2 * STEP_BYTES, STEP_BYTES // 2, STEP_BYTES // 4)
"""What one step of a grid may move, in the candidates for a region."""

NO_PASS = "and one pass over blocks of rows would move no fewer bytes"
"""Why rows without a block stay XLA's."""


@dataclasses.dataclass(frozen=True)
class Long:
    """A region whose rows fit VMEM in no block.

    Attributes:
        members: what one kernel would compute.
        refusal: what is said of it if no kernel is made.
    """

    members: tuple[fx.Node, ...]
    refusal: Action


@dataclasses.dataclass(frozen=True)
class FuseRows:
    """See the module's docstring.

    Attributes:
        chooser: chooses between XLA's form and kernels of several block sizes; None takes the default blocks.
    """

    chooser: Chooser | None = None
    name: str = "fuse_rows"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        merge_equal(graph)
        wanted = self._worth_expanding(graph)
        expand(graph, [node for node in list(graph.nodes) if node.name in wanted])
        merge_equal(graph)
        replaced: dict[fx.Node, fx.Node] = {}
        long: list[Long] = []
        actions = [self._fuse_first(graph, plans, replaced, long) for plans in _plans(graph)]
        for rows in long:
            at = next(at for at, action in enumerate(actions) if action is rows.refusal)
            actions[at : at + 1] = self._fuse_long(graph, rows)
        compare_places(graph)
        graphs.sort_by_use(graph)
        graphs.eliminate_dead_code(graph)
        return actions

    def _worth_expanding(self, graph: fx.Graph) -> set[str]:
        """Names of the operators that would be part of a kernel, had they been taken apart."""
        whole = [node for node in graph.nodes if parts_of(node) is not None]
        if not whole or graph.owning_module is None:
            return set()
        copied = graphs.copy_module(graph.owning_module)
        names = {node.name for node in whole}
        expand(copied.graph, [node for node in copied.graph.nodes if node.name in names])
        merge_equal(copied.graph)
        members = [member for plans in _plans(copied.graph) for found in plans for member in found.members]
        return {member.meta[PART_OF] for member in members if PART_OF in member.meta}

    def _fuse_first(
        self, graph: fx.Graph, plans: Sequence[RowPlan], replaced: dict[fx.Node, fx.Node], long: list[Long]
    ) -> Action:
        """Makes a kernel of the first plan that can be one; notes those whose rows are too long.

        Returns:
            What was done, or why it was not.
        """
        first, *others = plans
        action = self._fuse(graph, first.after(replaced), replaced)
        if others and action.kind != "fused" and not is_held(first, graphs.chip(graph)):
            return self._fuse_first(graph, others, replaced, long)
        if action.code == "TL607" and first.region.rows and not first.products:
            long.append(Long(first.members, action))
        return action

    def _fuse_long(self, graph: fx.Graph, long: Long) -> list[Action]:
        """Makes a kernel of each pass over the blocks of long rows that spares XLA some.

        Returns:
            What was done, or why nothing was.
        """
        graphs.sort_by_use(graph)
        parts = take_apart(graph, long.members)
        actions: list[Action] = []
        for region in [region for region in find_regions(graph) if region.rows and parts & set(region.accesses)]:
            members = [member for member in computed(region) if not region.waits(member)]
            for reductions in one_pass_each(region, members):
                found = pass_plan(region, members, reductions)
                if found is not None:
                    actions.append(self._fuse(graph, found, {}))
        return actions or [dataclasses.replace(long.refusal, reason=f"{long.refusal.reason}, {NO_PASS}")]

    def _fuse(self, graph: fx.Graph, found: RowPlan, replaced: dict[fx.Node, fx.Node]) -> Action:
        last = found.outputs[-1]
        if is_held(found, graphs.chip(graph)):
            reason = "expected rows that XLA moves, got some that it keeps in VMEM"
            return Action.on("unfused", last, reason, "TL608")
        copied_anyway = copied_by_xla(found)
        form = arranged(found)
        kernels = [] if form is None else self._kernels(graph, form[0])
        if form is None or not kernels:
            why = "no block of its rows fits the chip's memory, or its sums need the grid in two orders"
            return Action.on("unfused", last, why, "TL607")
        found, copied = form
        by_xla = bytes_apart(found) if found.products else bytes_by_xla(found)
        model = f"{bytes_as_kernel(found) / 2**20:.1f} MiB where XLA moves about {by_xla / 2**20:.1f}"
        if graphs.chip(graph).is_tpu and bytes_as_kernel(found) + copied >= by_xla + copied_anyway:
            reason = f"the kernel would move {model}, and rows that lie otherwise {copied / 2**20:.1f} more"
            return Action.on("unfused", last, reason, "TL608")
        choice = None
        if self.chooser is not None:
            choice = self.chooser.choose(Candidates(plain_form(found, _name(found)), tuple(kernels)))
        choice = choice or Choice(0, model)
        if choice.kernel is None:
            return Action.on("unfused", last, choice.reason, "TL608")
        kernel = kernels[choice.kernel]
        reason = f"{len(found.members)} operations are the kernel {kernel.name}: {choice.reason}"
        action = Action.on("fused", last, reason)
        replaced |= _replace(graph, found, kernel)
        return action

    def _kernels(self, graph: fx.Graph, found: RowPlan) -> list[RowKernel]:
        """The kernel of default blocks; where there is a choice, those of others too."""
        chip = graphs.chip(graph)
        vmem, where = chip.vmem_bytes, graphs.source_line(found.members[0]).partition(" in ")[0]
        kernels: list[RowKernel] = []
        work = _work(found, int(HEURISTICS.blocks_share * vmem))
        if found.products:
            least = bytes_apart(found)
            tilings = [tiling for fetched, tiling in tile_products(work) if fetched < least]
        else:
            tilings = [tiling for step in STEPS if (tiling := tile(work, step)) is not None]
        for tiling in tilings[: len(STEPS) if self.chooser is not None else 1]:
            writes = write_pass if isinstance(found, BlockPass) else write
            written = writes(found, tiling, _name(found), int(HEURISTICS.kernel_share * vmem))  # type: ignore[arg-type]
            if written is not None:
                kernels.append(row_kernel(written, where, chip))
        return list(dict.fromkeys(kernels))


def _plans(graph: fx.Graph) -> list[list[RowPlan]]:
    """Plans of the regions that have blocks of two dimensions or more: a vector alone is no row among others. Of those
    that a region has, the one that may move the fewest bytes is first."""
    regions = [region for region in find_regions(graph) if len(region.space.sizes) >= 2]
    alone = [plan(region) for region in regions]
    made = {node for found in alone if found is not None for node in found.outputs}
    plans = [(plan_with_products(region, made), found) for region, found in zip(regions, alone, strict=True)]
    possible = [[found for found in pair if found is not None] for pair in plans]
    return [found for found in possible if found]


def _moved(found: RowPlan) -> list[BlockValue]:
    taken = [
        BlockValue(dims_of(o.access), held_as(o.node.meta["val"].dtype).itemsize, o.summed()) for o in found.operands()
    ]
    given = [
        BlockValue(dims_of(found.region.accesses[n]), held_as(n.meta["val"].dtype).itemsize) for n in found.outputs
    ]
    return taken + given


def _work(found: RowPlan, capacity: int) -> TiledSpace:
    """What is cut into blocks; of a pass over long rows the rows too."""
    space, rows = found.region.space, found.region.rows
    whole = Tiling(tuple(space.sizes.items()), ())
    if isinstance(found, BlockPass):
        live = _live(found, RunningBody(found, whole).graph)
        return TiledSpace(space.sizes, frozenset(), _moved(found), live, capacity, rows)
    return TiledSpace(
        space.sizes, rows, _moved(found), _live(found, BlockGraph(found, whole).graph), capacity, summed_dims(found)
    )


def _live(found: RowPlan, graph: fx.Graph) -> int:
    """How many values of a whole block are alive at once, computing in order."""
    sizes = found.region.space.sizes
    last = {used: node for node in graph.nodes for used in node.all_input_nodes}
    alive: set[fx.Node] = set()
    most = 1
    for node in graph.nodes:
        if node.op != "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
            alive |= {node} if tuple(node.meta["val"].shape) == tuple(sizes.values()) else set()
        most = max(most, len(alive))
        alive -= {used for used in alive if last.get(used) is node}
    return most


def _name(found: RowPlan) -> str:
    """A name that says what a kernel computes: the operators it was taken from, or its reductions."""
    origins = [member.meta[ORIGIN] for member in found.members if ORIGIN in member.meta]
    ending = [node for node in found.members if ends_pass(found.region, node)] or found.members
    names = origins or [str(node.target).split(".")[1] for node in ending if node not in found.products]
    names = [str(product.node.target).split(".")[1] for product in found.products.values()] + names
    kind = "long_rows" if isinstance(found, BlockPass) else "rows" if found.region.rows else "blocks"
    return "_".join(name.strip("_") for name in list(dict.fromkeys(names))[:3]) + f"_{kind}"


def _replace(graph: fx.Graph, found: RowPlan, kernel: RowKernel) -> dict[fx.Node, fx.Node]:
    """Sends the users of a plan's outputs to a call of its kernel. The graph's order is mended later.

    Returns:
        What took the place of each output.
    """
    position = {node: at for at, node in enumerate(graph.nodes)}
    members = set() if isinstance(found, BlockPass) else set(found.members)
    new: dict[fx.Node, fx.Node] = {}
    users = [user for node in found.outputs for user in node.users if user not in members]
    with graphs.inserting_for(found.members[0]), graph.inserting_before(min(users, key=position.__getitem__)):
        given = [
            _given(graph, found, operand, slot.type)
            for operand, slot in zip(found.operands(), kernel.operands, strict=True)
        ]
        call = graphs.call(graph, kernel_call, kernel, tuple(given))
        for index, node in enumerate(found.outputs):
            result = graphs.call(graph, operator.getitem, call, index)
            value = node.meta["val"]
            result = result if found.lying is None else restored(graph, result, node, found.lying)
            new[node] = _shaped(graph, result, tuple(value.shape), value.dtype)
            node.replace_all_uses_with(new[node], delete_user_cb=lambda user: user not in members)
        for node in found.members:  # views of outputs, which the kernel uses too
            base = base_of(node, members)
            if (
                base in new
                and node is not base
                and set(node.users) - members
                and math.prod(shape_of(node)) == math.prod(shape_of(base))
            ):
                new[node] = _shaped(graph, new[base], shape_of(node), node.meta["val"].dtype)
                node.replace_all_uses_with(new[node], delete_user_cb=lambda user: user not in members)
    for member in reversed(found.members):
        if not member.users:
            graph.erase_node(member)
    return new


def _given(graph: fx.Graph, found: RowPlan, operand: RowOperand, wanted: TensorType) -> fx.Node:
    """A plan's operand as its kernel takes it."""
    node = operand.node
    if found.lying is not None:
        node = as_axes(graph, node, operand.fine, found.lying)
    return _shaped(graph, node, wanted.shape, wanted.element.torch)


def _shaped(graph: fx.Graph, node: fx.Node, shape: Sequence[int], dtype: torch.dtype) -> fx.Node:
    return graphs.reshaped(graph, graphs.converted(graph, node, dtype), shape)
