"""Whether attention with dropped weights becomes kernels, and in which blocks."""

from __future__ import annotations

import dataclasses
import math

from tpu_lowering.fuse.attention.added_masks import unknown
from tpu_lowering.fuse.attention.blocks import Heads, laid_out, rounded
from tpu_lowering.fuse.attention.dropout.factors import Dropped, dropped_by
from tpu_lowering.fuse.attention.dropout.sizes import Block, Sizes, fitting
from tpu_lowering.fuse.attention.masks import HIDDEN, Known
from tpu_lowering.fuse.attention.plans import bytes_by_xla, unfit
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.vmem_limits import kernel_bytes
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip


@dataclasses.dataclass(frozen=True)
class DroppedPlan:
    """An attention with dropped weights that becomes kernels.

    Attributes:
        site: where it is.
        dropped: what its weights are multiplied by.
    """

    site: Attention
    dropped: Dropped


def plan_of(site: Attention, trains: bool, chip: Chip, known: Known) -> DroppedPlan | Action:
    """What becomes of an attention whose weights are multiplied by something: a plan, or the refusal.

    Args:
        site: where it is.
        trains: whether its gradients are taken, too.
        chip: what it is for.
        known: as for ``attention.masks.split``.
    """
    found = dropped_by(site.dropped)
    if found is None:
        reason = "expected weights that are used as they are or dropped, got some that another tensor multiplies"
        return Action.on("unfused", site.node, reason, "TL521")
    if site.shared is not None:
        reason = f"expected scores and weights that nothing else uses, got another use of {site.shared.name}"
        return Action.on("unfused", site.node, reason, "TL522")
    if refusal := unfit(site) or _unfit(site, known):
        return Action.on("unfused", site.node, refusal, "TL521")
    sizes = sizes_of(site)
    if refusal := refused(sizes, trains, chip):
        return Action.on("unfused", site.node, refusal, "TL521")
    by_xla = moved_by_xla(sizes, trains, chip)
    if moved(sizes, trains) >= by_xla:
        text = f"{moved(sizes, trains) / 2**20:.1f} MiB where XLA moves about {by_xla / 2**20:.1f}"
        return Action.on("unfused", site.node, f"expected fewer bytes than XLA's, got {text}", "TL523")
    return DroppedPlan(site, found[1])


def _unfit(site: Attention, known: Known) -> str:
    """Why the kernels do not take an attention; "" if they do."""
    if site.soft_cap is not None:
        return "expected, with dropped weights, scores that nothing bounds, got a tanh of them"
    rank = len(site.leading) + 2
    shapes = [graphs.type_of(term.node).shape for term in site.terms]
    if (rank > 4 and any(math.prod(shape[:-2]) > 1 for shape in shapes)) or any(len(shape) > rank for shape in shapes):
        return "expected, with dropped weights, a mask of four dimensions, got another"
    if any(term.value is not None and term.value > HIDDEN and not term.adds for term in unknown(site, known)):
        return "expected, with dropped weights, a mask that hides keys, got one that puts another number into scores"
    return ""


def heads_of(site: Attention) -> int:
    """How many heads of the queries the attention is cut into, which heads of the keys divide; the rest is batch."""
    leading = site.leading
    if not site.terms and site.written is not None:  # the product of heads has one size for both
        leading = graphs.type_of(site.written.softmax).shape[:-2]
    return leading[-1] if leading and leading[-1] % site.groups == 0 else site.query.heads


def sizes_of(site: Attention) -> Sizes:
    """The sizes of a site; with a mask of any sizes, which matter little."""
    heads, itemsize = heads_of(site), graphs.type_of(site.query.node).element.numpy.itemsize
    return Sizes(
        batch=site.query.heads // heads,
        heads=heads,
        shared=heads // site.groups,
        queries=site.query.length,
        keys=site.key.length,
        width=site.query.width,
        value_width=site.value.width,
        itemsize=itemsize,
        mask=_mask(site),
    )


def _mask(site: Attention) -> tuple[int, int, int, int] | None:
    """The sizes of all that is added to the scores, together."""
    shapes = [([1] * 4 + list(graphs.type_of(term.node).shape))[-4:] for term in site.terms]
    return tuple(map(max, zip(*shapes, strict=True))) if shapes else None  # type: ignore[return-value]


def block_of(sizes: Sizes, is_gradient: bool, chip: Chip) -> Block | None:
    return fitting(sizes, is_gradient, kernel_bytes(chip))


def refused(sizes: Sizes, is_gradient: bool, chip: Chip) -> str:
    """Why no block of an attention fits a chip; "" if one does."""
    if block_of(sizes, is_gradient, chip) is not None:
        return ""
    most = kernel_bytes(chip) / 2**20
    return f"expected, with dropped weights, rows of scores that fit {most:g} MiB of VMEM, got {sizes.keys} keys"


def _heads(sizes: Sizes) -> Heads:
    lengths = (sizes.queries, sizes.keys, sizes.width, sizes.value_width)
    return Heads(sizes.batch * sizes.heads, sizes.groups, *lengths, sizes.itemsize)


def _kept_bytes(sizes: Sizes) -> int:
    return sizes.batch * sizes.heads * sizes.queries * laid_out(sizes.keys)


def moved(sizes: Sizes, trains: bool) -> int:
    """HBM bytes of the kernels, about: what is kept is read by each, and with lengths that are no multiples of 128 all
    that they take and give is written twice."""
    longer = dataclasses.replace(sizes, queries=rounded(sizes.queries), keys=rounded(sizes.keys))
    rows = longer.queries * longer.heads + longer.keys * longer.shared
    each = longer.batch * rows * (longer.width + longer.value_width) * longer.itemsize
    found = 3 * each + 2 * _kept_bytes(longer) if trains else each + _kept_bytes(longer)
    return found * (1 if longer == sizes else 3)


def moved_by_xla(sizes: Sizes, trains: bool, chip: Chip) -> int:
    """The same without kernels."""
    share = HEURISTICS.kept_scores_in_training if trains else HEURISTICS.kept_scores
    held = share * chip.vmem_bytes if chip.is_tpu else 0
    heads = _heads(sizes)
    forward = bytes_by_xla(heads, False, held) + _kept_bytes(sizes)
    return forward + bytes_by_xla(heads, True, held) + _kept_bytes(sizes) if trains else forward
