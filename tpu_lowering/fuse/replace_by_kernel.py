"""A plan of rows as a kernel call: its forms are written, one is chosen, and takes the place of what it computes."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx

from tpu_lowering.fuse.choose.choices import Candidates, Choice, Chooser
from tpu_lowering.fuse.rows.block_graph import BlockGraph, held_as, summed_dims
from tpu_lowering.fuse.rows.computed_inside import compute_inside
from tpu_lowering.fuse.rows.expand import ORIGIN, PART_OF
from tpu_lowering.fuse.rows.kernel_axes import arranged, as_axes, copied_by_xla, restored
from tpu_lowering.fuse.rows.kernel_source import KernelSource, plain_form, write
from tpu_lowering.fuse.rows.planning import base_of, bytes_as_kernel
from tpu_lowering.fuse.rows.products import bytes_apart
from tpu_lowering.fuse.rows.row_kernel import RowKernel, row_kernel
from tpu_lowering.fuse.rows.tiles import STEP_BYTES, BlockValue, TiledSpace, Tiling, tile, tile_products
from tpu_lowering.fuse.space.row_plans import RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.fuse.space.spaces import dims_of
from tpu_lowering.fuse.xla.bytes import bytes_by_xla, ends_pass
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.kept_in_vmem import is_held
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.types import TensorType

STEPS = (STEP_BYTES, 2 * STEP_BYTES, STEP_BYTES // 2, STEP_BYTES // 4)
"""What one step of a grid may move, in the candidates for a region."""

PARTS = "parts"
"""Key of a kernel call's metadata: names of the operators that it has parts of."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How plans of one kind become kernels.

    Attributes:
        write: writes a kernel of a plan, for a tiling; None if it has no such form.
        body: one block's computation for a tiling of the whole space, by which values alive at once are counted.
        kind: how its kernels' names end; "" for "rows", or "blocks" where no row is reduced.
        whole_rows: whether a block holds whole rows, so that the kernel computes all that its plan holds; else what
            the plan holds beside its results stays.
    """

    write: Callable[[RowPlan, Tiling, str, Chip], KernelSource | None]
    body: Callable[[RowPlan, Tiling], fx.Graph]
    kind: str = ""
    whole_rows: bool = True


ROWS = Form(write, lambda found, whole: BlockGraph(found, whole).graph)
"""Kernels whose blocks hold whole rows."""


def replace_by_kernel(
    graph: fx.Graph, found: RowPlan, replaced: dict[fx.Node, fx.Node], chooser: Chooser | None, form: Form = ROWS
) -> Action:
    """Makes a kernel of a plan where it moves fewer bytes than XLA alone; the graph's order is left to the caller.

    Args:
        graph: edited in place.
        found: the plan.
        replaced: what took the place of each output of earlier plans; added to.
        chooser: chooses between XLA's form and kernels of several block sizes; None takes the default blocks.
        form: how such a plan becomes a kernel.

    Returns:
        What was done, or why it was not.
    """
    last = found.outputs[-1]
    if is_held(found, graphs.chip(graph)):
        reason = "expected rows that XLA moves, got some that it keeps in VMEM"
        return Action.on("unfused", last, reason, "TL608")
    found = compute_inside(found)
    copied_anyway = copied_by_xla(found)
    axes = arranged(found)
    kernels = [] if axes is None else _kernels(graph, axes[0], chooser, form)
    if axes is None or not kernels:
        why = "no block of its rows fits the chip's memory, or its sums need the grid in two orders"
        return Action.on("unfused", last, why, "TL607")
    found, copied = axes
    by_xla = bytes_apart(found) if found.products else bytes_by_xla(found)
    model = f"{bytes_as_kernel(found) / 2**20:.1f} MiB where XLA moves about {by_xla / 2**20:.1f}"
    if graphs.chip(graph).is_tpu and bytes_as_kernel(found) + copied >= by_xla + copied_anyway:
        reason = f"the kernel would move {model}, and rows that lie otherwise {copied / 2**20:.1f} more"
        return Action.on("unfused", last, reason, "TL608")
    choice = None
    if chooser is not None:
        choice = chooser.choose(Candidates(plain_form(found, name_of(found, form)), tuple(kernels)))
    choice = choice or Choice(0, model)
    if choice.kernel is None:
        return Action.on("unfused", last, choice.reason, "TL608")
    kernel = kernels[choice.kernel]
    reason = f"{len(found.members)} operations are the kernel {kernel.name}: {choice.reason}"
    action = Action.on("fused", last, reason)
    replaced |= _replace(graph, found, kernel, form)
    return action


def _kernels(graph: fx.Graph, found: RowPlan, chooser: Chooser | None, form: Form) -> list[RowKernel]:
    """The kernel of default blocks; where there is a choice, those of others too."""
    chip = graphs.chip(graph)
    where = graphs.source_line(found.members[0]).partition(" in ")[0]
    name, kernels = name_of(found, form), list[RowKernel]()
    work = _work(found, int(HEURISTICS.blocks_share * chip.vmem_bytes), form)
    if found.products:
        least = bytes_apart(found)
        tilings = [tiling for fetched, tiling in tile_products(work) if fetched < least]
    else:
        tilings = [tiling for step in STEPS if (tiling := tile(work, step)) is not None]
    for tiling in tilings[: len(STEPS) if chooser is not None else 1]:
        written = form.write(found, tiling, name, chip)
        if written is not None:
            kernels.append(row_kernel(written, where, chip))
    return list(dict.fromkeys(kernels))


def _moved(found: RowPlan) -> list[BlockValue]:
    taken = [(o.node, o.access, o.summed()) for o in found.operands()]
    given = [(node, found.region.accesses[node]) for node in found.outputs]
    return [
        BlockValue(dims_of(access), held_as(node.meta["val"].dtype).itemsize, *summed)
        for node, access, *summed in (*taken, *given)
    ]


def _work(found: RowPlan, capacity: int, form: Form) -> TiledSpace:
    """What is cut into blocks; of a pass over long rows the rows too."""
    space, rows = found.region.space, found.region.rows
    whole = Tiling(tuple(space.sizes.items()), ())
    live = _live(found, form.body(found, whole))
    if form.whole_rows:
        return TiledSpace(space.sizes, rows, _moved(found), live, capacity, summed_dims(found))
    return TiledSpace(space.sizes, frozenset(), _moved(found), live, capacity, rows)


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
        alive -= {used for used in node.all_input_nodes if last[used] is node}
    return most


def name_of(found: RowPlan, form: Form) -> str:
    """A name that says what a kernel computes: the operators it was taken from, or its reductions."""
    origins = [member.meta[ORIGIN] for member in found.members if ORIGIN in member.meta]
    ending = [node for node in found.members if ends_pass(found.region, node)] or found.members
    names = origins or [str(node.target).split(".")[1] for node in ending if node not in found.products]
    names = [str(product.node.target).split(".")[1] for product in found.products.values()] + names
    kind = form.kind or ("rows" if found.region.rows else "blocks")
    return "_".join(name.strip("_") for name in list(dict.fromkeys(names))[:3]) + f"_{kind}"


def _replace(graph: fx.Graph, found: RowPlan, kernel: RowKernel, form: Form) -> dict[fx.Node, fx.Node]:
    """Sends the users of a plan's outputs to a call of its kernel. The graph's order is mended later.

    Returns:
        What took the place of each output.
    """
    members = set(found.members) if form.whole_rows else set()
    new: dict[fx.Node, fx.Node] = {}
    users = [user for node in found.outputs for user in node.users if user not in members]
    with graphs.inserting_for(found.members[0], before=min(users)):
        given = [
            _given(graph, found, operand, slot.type)
            for operand, slot in zip(found.operands(), kernel.operands, strict=True)
        ]
        call = graphs.call(graph, kernel_call, kernel, tuple(given))
        call.meta[PARTS] = frozenset(member.meta[PART_OF] for member in found.members if PART_OF in member.meta)
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
