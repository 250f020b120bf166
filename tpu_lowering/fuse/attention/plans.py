"""Which library kernel an attention becomes, in which blocks, or why it stays as it is."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from tpu_lowering.fuse.attention.added_columns import COLUMNS
from tpu_lowering.fuse.attention.blocks import ROWS, Blocks, Cost, Heads, Library, choose, laid_out, packed, rounded
from tpu_lowering.fuse.attention.masks import Known, Term, parts, split
from tpu_lowering.fuse.attention.operands import Rows
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.fuse.attention.static_masks import StaticMask, lengthened
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.layouts import order_of, order_wanted, readers_of, source_of
from tpu_lowering.fuse.xla.vmem_limits import BLOCKS_IN_LEAST, LEAST, asked, kernel_bytes
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import LANES, Chip
from tpu_lowering.ir.types import ElementType, bf16, f32


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """An attention, and the kernel that it becomes.

    Attributes:
        site: where it is.
        heads: its sizes.
        mask: the keys that each query sees, as far as that is known; None for all.
        terms: what else is done to the scores.
        library: the kernel.
        blocks, cost: of it.
    """

    site: Attention
    heads: Heads
    mask: StaticMask | None
    terms: tuple[Term, ...]
    library: Library
    blocks: Blocks
    cost: Cost

    def moved(self, replaced: Mapping[fx.Node, fx.Node]) -> AttentionPlan:
        """The same plan, of nodes that stand in for some that it was made of."""
        terms = tuple(dataclasses.replace(term, node=replaced.get(term.node, term.node)) for term in self.terms)
        return dataclasses.replace(self, site=self.site.moved(replaced), terms=terms)


def plan_of(site: Attention, chip: Chip, known: Known) -> AttentionPlan | Action:
    """What becomes of an attention: a plan, or the refusal. ``known`` is as for ``attention.masks.split``."""
    capacity = chip.vmem_bytes
    if site.shared is not None:
        reason = f"expected scores and weights that nothing else uses, got another use of {site.shared.name}"
        return Action.on("unfused", site.node, reason, "TL522")
    if refusal := unfit(site):
        return Action.on("unfused", site.node, refusal, "TL521")
    query, key = site.query, site.key
    given = tuple(part for term in site.terms for part in parts(term))
    mask, terms = split(given, site.is_causal, query.length, key.length, site.groups, known)
    length_minor = length_minor_of(site, chip)
    library = _library(site, mask, terms, length_minor)
    if refusal := _unfit_for(library, site, terms):
        return Action.on("unfused", site.node, refusal, "TL521")
    if library == "flash":
        length_minor = ROWS
    itemsize = graphs.type_of(query.node).element.numpy.itemsize
    sizes = (query.length, key.length, query.width, site.value.width)
    heads = Heads(query.heads, site.groups, *sizes, itemsize, length_minor=length_minor)
    seen, longer = _held(library, heads, mask, terms, added_type(site, terms))
    chosen = choose(seen, longer, kernel_bytes(chip), library)
    if chosen is None:
        most = kernel_bytes(chip) / 2**20
        reason = f"expected blocks that fit {most:g} MiB of VMEM, got rows of {query.width} elements"
        return Action.on("unfused", site.node, reason, "TL521")
    cost = dataclasses.replace(chosen[1], nbytes=chosen[1].nbytes + _prepared_bytes(heads, seen, site.is_gradient))
    is_training = site.is_gradient or site.wants_logsumexp
    share = HEURISTICS.kept_scores_in_training if is_training else HEURISTICS.kept_scores
    by_xla = bytes_by_xla(heads, site.is_gradient, share * capacity if chip.is_tpu else 0)
    if cost.nbytes >= by_xla:
        is_held = by_xla < bytes_by_xla(heads, site.is_gradient, 0)
        held = ", which keeps the scores in VMEM and reads every key and value once," if is_held else ","
        reason = f"expected fewer bytes than XLA's{held} got "
        moved = f"{cost.nbytes / 2**20:.1f} MiB where XLA moves about {by_xla / 2**20:.1f}"
        return Action.on("unfused", site.node, reason + moved, "TL523")
    blocks = chosen[0]
    is_kept = heads.operand_bytes + LEAST <= capacity < heads.operand_bytes + (asked(cost.vmem, chip) or LEAST)
    if chip.is_tpu and not is_training and is_kept:
        fewer = choose(seen, longer, BLOCKS_IN_LEAST, library, is_kept=True) or chosen
        blocks, cost = fewer[0], dataclasses.replace(cost, vmem=fewer[1].vmem)
    return AttentionPlan(site, heads, mask, terms, library, blocks, cost)


def length_minor_of(site: Attention, chip: Chip) -> tuple[bool, bool, bool]:
    """Of query, key and value, whether they lie in memory with the length as the last dimension: where that takes fewer
    bytes, and they are arguments or results of the program, which lie so, or are computed for the kernel alone."""

    def fits(rows: Rows) -> bool:
        node, itemsize = rows.node, graphs.type_of(rows.node).element.numpy.itemsize
        if not rows.width == packed(rows.width, itemsize) < laid_out(rows.width):  # else cutting heads is a copy
            return False
        if graphs.is_call(source_of(node), operator.getitem):
            return False
        length = len(shape_of(node)) - (1 if rows.swapped else 2)
        return all(order is None or order[-1] == length for order in (order_of(node), order_wanted(node)))

    query, key, value = (chip.is_tpu and fits(rows) for rows in (site.query, site.key, site.value))
    return query, key, value


def is_together(site: Attention, library: Library, heads: Heads) -> bool:
    """Whether a kernel takes rows with batch and heads as one size, as that of the gradients does.

    With the leading sizes of the scores, as products before and after it have them, XLA neither copies what they make
    nor selects by itself what they read. Rows that are padded it copies anyway, and narrow rows lie with the length
    last, as XLA has them where batch and heads are one. Keys that it scales as they are fetched it would fetch with the
    factor written out for each element of these sizes: so they are scaled as they are computed, which is for keys that
    nothing else reads.
    """
    if site.is_gradient or not site.leading or site.leading[-1] % site.groups:
        return True
    is_padded = any(rounded(rows.length) != rows.length for rows in (site.query, site.key))
    is_scaled_apart = site.scale != 1 and not _are_own(site.key.node)
    return library == "splash" and (is_padded or any(heads.length_minor) or is_scaled_apart)


def _are_own(node: fx.Node) -> bool:
    """Whether a value is computed, by no kernel, and one node alone reads it or views of it."""
    source = source_of(node)
    is_computed = source.op == "call_function" and source.target is not operator.getitem
    return is_computed and len(readers_of(source)) == 1


def _library(
    site: Attention, mask: StaticMask | None, terms: Sequence[Term], length_minor: tuple[bool, bool, bool]
) -> Library:
    """The kernel that moves the fewest bytes of those that can do it."""
    if site.is_gradient:
        return "splash_gradient"
    if terms:
        return "splash" if _are_along_keys(site, terms) else "flash"
    is_plain = (mask is None or mask.is_causal) and site.soft_cap is None
    is_plain = is_plain and not site.wants_logsumexp and _fits_flash(site) and not any(length_minor)
    return "flash" if is_plain else "splash"


def _are_along_keys(site: Attention, terms: Sequence[Term]) -> bool:
    return site.leading[-1] % site.groups == 0 and all(term.is_along_keys(site.groups) for term in terms)


def _fits_flash(site: Attention) -> bool:
    width = site.query.width
    is_whole = rounded(site.query.length) == site.query.length and rounded(site.key.length) == site.key.length
    is_wide = width <= LANES or width % LANES == 0
    return is_whole and site.value.width == width and is_wide and site.leading[-1] % site.groups == 0


def added_type(site: Attention, terms: Sequence[Term]) -> ElementType:
    """The element type in which flash attention is given what is added to the scores: that of the rows for what does
    nothing but hide keys, that of a single bias of bfloat16 which no scale is taken out of, else float32."""
    if all(term.hides for term in terms):
        return graphs.type_of(site.query.node).element
    types = [graphs.type_of(term.node).element for term in terms if term.value is None]
    return bf16 if len(terms) == 1 and types == [bf16] and site.scale == 1 else f32


def _held(
    library: Library, heads: Heads, mask: StaticMask | None, terms: Sequence[Term], added: ElementType
) -> tuple[Heads, StaticMask | None]:
    """The sizes and the mask that the kernel has: lengths that blocks divide, columns for what is added to scores."""
    lengths = rounded(heads.queries), rounded(heads.keys)
    if terms and library == "flash":
        return dataclasses.replace(heads, bias=added.numpy.itemsize), mask
    width = heads.width + (COLUMNS if terms else 0)
    longer = lengthened(mask, (heads.queries, heads.keys), lengths)
    return dataclasses.replace(heads, queries=lengths[0], keys=lengths[1], width=width), longer


def _prepared_bytes(heads: Heads, held: Heads, is_gradient: bool) -> int:
    """Bytes that are read and written to give operands, and take from results, what the kernel has besides.

    For rows it is half of what it would be alone: what makes an operand, or uses a result, does it on the way.
    """
    if (held.queries, held.keys) != (heads.queries, heads.keys):
        return heads.operand_bytes * (2 if is_gradient else 1)
    if held.width == heads.width:
        return 0
    rows = heads.count * heads.queries + heads.count // heads.groups * heads.keys
    moved = (laid_out(heads.width) + laid_out(held.width)) * heads.itemsize
    return rows * moved * (2 if is_gradient else 1)


def bytes_by_xla(heads: Heads, is_gradient: bool, held: float) -> int:
    """HBM bytes of an attention without a kernel, about.

    Args:
        heads: sizes.
        is_gradient: whether it is the gradients.
        held: bytes of scores that stay in VMEM: none on a CPU, which has no such memory.
    """
    passes = HEURISTICS.gradient_score_passes if is_gradient else HEURISTICS.score_passes
    operands = heads.operand_bytes * (2 if is_gradient else 1)
    return operands + (passes * heads.score_bytes if heads.score_bytes > held else 0)


def unfit(site: Attention) -> str:
    """Why no library kernel takes an attention; "" if one may."""
    query, key, value = site.query, site.key, site.value
    types = [graphs.type_of(rows.node).element for rows in (query, key, value)]
    if len(set(types)) > 1 or types[0].torch not in (torch.float32, torch.bfloat16):
        return f"expected operands that are all f32 or all bf16, got {', '.join(map(str, types))}"
    if graphs.type_of(site.node).element != types[0]:
        return f"expected a result of the operands' type {types[0]}, got {graphs.type_of(site.node).element}"
    if key.heads != value.heads or query.heads % key.heads:
        return f"expected heads that share keys in equal groups, got {query.heads}, {key.heads} and {value.heads}"
    if query.width != key.width or query.width % 8 or value.width % 8:
        return f"expected rows of a multiple of 8 elements, got {query.width} and {value.width}"
    if site.soft_cap is not None and not (site.soft_cap > 0 and math.isfinite(site.soft_cap)):
        return f"expected a positive number that bounds the scores, got {site.soft_cap:g}"
    return "" if site.scale > 0 else f"expected a positive scale, got {site.scale:g}"


def _unfit_for(library: Library, site: Attention, terms: Sequence[Term]) -> str:
    """Why a library kernel does not take an attention with terms that are no constants; "" if it does."""
    rank = len(site.leading) + 2
    if any(len(graphs.type_of(term.node).shape) > rank for term in terms):
        return f"expected a mask that broadcasts with scores of {rank} dimensions, got others"
    if site.soft_cap is not None and terms:
        return "expected, with scores that are bounded, a mask that depends on no input, got another"
    if library == "splash" or not terms or (site.is_gradient and _are_along_keys(site, terms)):
        return ""
    if site.is_gradient:
        return "expected, for gradients, a mask that depends on no input, or on the key alone, got another"
    if site.query.length % LANES or site.key.length % LANES:
        lengths = f"{site.query.length} and {site.key.length}"
        return f"expected, with a mask of queries and keys, lengths that are multiples of {LANES}, got {lengths}"
    if not _fits_flash(site):
        return f"expected, with a mask, rows of at most {LANES} or a multiple of it, got {site.query.width}"
    return ""
