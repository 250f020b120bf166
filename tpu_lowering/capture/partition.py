"""Forward and backward, parted; before that, attention that code writes out becomes an operator with a backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from tpu_lowering import compat
from tpu_lowering.capture.graphs import is_symbolic
from tpu_lowering.fuse import attention_sites, attention_training
from tpu_lowering.fuse.attention_masks import Term, computed, constants
from tpu_lowering.normalise import shared_memory


def partitioner(device_kind_of: Callable[[fx.GraphModule, Any], str | None]) -> Callable[..., Any]:
    """A ``partition_fn`` for AOTAutograd.

    Args:
        device_kind_of: for a joint graph and its inputs, JAX's name of the TPU that it is for, "" for the CPU; None if
            nothing is fused there.
    """

    def partition(joint: fx.GraphModule, inputs: Any, **given: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        shared_memory.mark_shared_memory(joint)
        device_kind = device_kind_of(joint, inputs)
        if device_kind is not None and not any(is_symbolic(node.meta.get("val")) for node in joint.graph.nodes):
            with compat.disable_current_modes():  # masks are computed here
                attention_training.call_operators(joint.graph, device_kind, {})
                compute_masks_again(joint.graph)
        return compat.min_cut_partition(joint, inputs, **given)

    return partition


def compute_masks_again(graph: fx.Graph) -> None:
    """Has the backward compute the masks of attention from their parts: a whole one that is saved is an input to it."""
    targets = (attention_sites.FORWARD, attention_sites.BACKWARD)
    masks = [node.kwargs.get("attn_mask") for node in graph.nodes if node.target in targets]
    found = [node for mask in masks if isinstance(mask, fx.Node) for node in computed(Term(mask))]
    for node in (*found, *(constants(graph) if found else ())):
        node.meta.setdefault("recompute", CheckpointPolicy.MUST_RECOMPUTE)
