"""Forward and backward, parted; before that, attention that code writes out becomes an operator with a backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from tpu_lowering import compat
from tpu_lowering.capture.graphs import is_symbolic
from tpu_lowering.capture.recompute_late import REGION, recompute_late, save_results
from tpu_lowering.capture.recompute_norms import recompute_norms
from tpu_lowering.capture.recompute_rows import recompute_rows
from tpu_lowering.capture.shardings import Table
from tpu_lowering.fuse.attention import sites
from tpu_lowering.fuse.attention.masks import Term, computed, constants
from tpu_lowering.fuse.attention.training import pair_with_gradients
from tpu_lowering.ir import operators
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.normalise import shared_memory
from tpu_lowering.normalise.collectives import name_groups
from tpu_lowering.normalise.specialise import SYMBOLIC


def partitioner(
    chip_of: Callable[[fx.GraphModule, Any], Chip | None],
    parameters: Collection[int] = (),
    table: Table | None = None,
    tell: Callable[[Sequence[Action]], None] = lambda actions: None,
) -> Callable[..., Any]:
    """A ``partition_fn`` for AOTAutograd.

    A backward is given what a view is a view of, and cuts the view out itself: of a parameter that is nothing new.

    Args:
        chip_of: for a joint graph and its inputs, what it is for; None if
            nothing is fused there.
        parameters: which inputs of Dynamo's graph are parameters.
        table: how tensors lie on a mesh; None for one device.
        tell: is told what was done.
    """

    def partition(joint: fx.GraphModule, inputs: Any, **given: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        shared_memory.mark_shared_memory(joint)
        name_groups(joint.graph)
        gather_again(joint.graph, parameters)
        chip = chip_of(joint, inputs)
        if chip is not None and not any(is_symbolic(node.meta.get("val")) for node in joint.graph.nodes):
            with compat.disable_current_modes():  # masks are computed here
                pair_with_gradients.call_operators(joint.graph, chip, {})
                compute_again(joint.graph)
        with compat.disable_current_modes():
            tell(recompute_rows(joint.graph, given["num_fwd_outputs"]))
            save_results(joint.graph, given["num_fwd_outputs"])
            if chip is not None and chip.is_tpu:
                tell(recompute_norms(joint.graph, given["num_fwd_outputs"]))
        if table is not None:
            table.constrain_modules(joint.graph, given["num_fwd_outputs"])
        # XLA computes pointwise work inside the product that reads it: on a chip there is no need to save that.
        with compat.saving(operands_of_products=chip is None or not chip.is_tpu):
            forward, backward = compat.min_cut_partition(joint, inputs, **given)
        if chip is not None and chip.is_tpu and (late := recompute_late(backward.graph)):
            backward.recompile()
            tell(late)
        return repeat_draws(joint, forward, backward, given["num_fwd_outputs"])

    return partition


def gather_again(graph: fx.Graph, parameters: Collection[int]) -> None:
    """Has the backward gather parameters anew that ranks hold in parts: whole ones would be held until it comes.

    Args:
        graph: a joint graph.
        parameters: which inputs of Dynamo's graph are parameters.
    """
    known: list[Any] = [node for node in graph.find_nodes(op="placeholder") if compat.input_behind(node) in parameters]
    gathered: list[fx.Node] = []
    for node in graph.nodes:
        if node.target in (compat.c10d.all_gather_into_tensor.default, compat.c10d.wait_tensor.default):
            source = node.args[0]
            while isinstance(source, fx.Node) and source.op == "call_function" and source.target in CARRIED:
                source = source.args[0]
            if source in known or source in gathered:
                gathered.append(node)
    for node in gathered:
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


CARRIED = (*operators.MOVES, compat.aten.view.default, compat.aten.t.default, compat.prims.convert_element_type.default)
"""What stands between a parameter and its gathering: views, and another dtype."""


def repeat_draws(
    joint: fx.GraphModule, forward: fx.GraphModule, backward: fx.GraphModule, results: int
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward in which no random operator draws twice: the backward repeats what the forward drew.

    The partitioner does so for operators inside of ``checkpoint``; but with an ``activation_memory_budget`` it has a
    backward compute others again, and these would draw anew.

    Args:
        joint: the joint graph, as the partitioner left it.
        forward, backward: its parts.
        results: how many results of the forward are the user's; saved values follow, sizes last.
    """
    twice = {node.name for node in forward.graph.nodes if _draws(node)}
    twice &= {node.name for node in backward.graph.nodes if _draws(node)}
    if not twice:
        return forward, backward
    for node in filter(_draws, joint.graph.nodes):
        node.meta.pop("recompute", None)  # the partitioner has dealt with those of a ``checkpoint``
        if node.name in twice:
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
    for node in backward.graph.find_nodes(op="placeholder"):
        if node.name.startswith("rng_state_output"):  # of a ``checkpoint``: torch would give new ones the same names
            node.target = f"checkpoint_{node.name}"
    outputs: Any = forward.graph.output_node().args[0]
    sizes = sum(isinstance(node.meta.get("val"), SYMBOLIC) for node in outputs[results:])
    return compat.functionalize_rng_ops(joint, forward, backward, sizes)


def _draws(node: fx.Node) -> bool:
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def compute_again(graph: fx.Graph) -> None:
    """Has the backward compute the masks of attention from their parts, and the positions of a scatter that depend on
    no input: what is saved is an input to it, and nothing is known of that."""
    targets = (sites.FORWARD, sites.BACKWARD)
    masks = [node.kwargs.get("attn_mask") for node in graph.nodes if node.target in targets]
    found = [node for mask in masks if isinstance(mask, fx.Node) for node in computed(Term(mask))]
    positions = {used for node in graph.nodes if node.target in operators.SCATTERS for used in node.all_input_nodes}
    known = constants(graph) if found or positions else set[fx.Node]()
    if found or positions & known:
        for node in (*found, *known):
            if node.meta.get("recompute") is not CheckpointPolicy.MUST_SAVE:
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
                node.meta.pop(REGION, None)  # the partitioner saves what two checkpointed regions read
