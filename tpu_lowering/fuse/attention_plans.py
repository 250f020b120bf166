"""Which library kernel an attention becomes, in which blocks, or why it stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from tpu_lowering import compat
from tpu_lowering.fuse.attention_blocks import LANES, Blocks, Cost, Heads, Library, choose
from tpu_lowering.fuse.attention_masks import StaticMask, Term, split
from tpu_lowering.fuse.attention_sites import Attention
from tpu_lowering.ir import graphs
from tpu_lowering.passes.base import Action

SHARE = 0.75
"""Of VMEM, what a kernel may use: the compiler keeps values between operations there too."""
HELD = 0.5
"""Of VMEM, how large scores may be that XLA is expected to keep there."""
PASSES, GRADIENT_PASSES = 4, 8
"""How often XLA writes or reads all scores, or what is made of them."""


@dataclasses.dataclass(frozen=True)
class Plan:
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


def vmem_of(device_kind: str) -> int:
    """Bytes of VMEM of a TPU; "" is the CPU, for which those of a tpu7x stand in."""
    return int(compat.tpu_info(device_kind or "TPU7x").vmem_capacity_bytes)


def plan_of(site: Attention, device_kind: str) -> Plan | Action:
    """What becomes of an attention: a plan, or the refusal."""
    capacity = vmem_of(device_kind)
    if site.shared is not None:
        reason = f"expected scores and weights that nothing else uses, got another use of {site.shared.name}"
        return Action.on("unfused", site.node, reason, "TL522")
    if refusal := _unfit(site):
        return Action.on("unfused", site.node, refusal, "TL521")
    query, key = site.query, site.key
    mask, terms = split(site.terms, site.is_causal, query.length, key.length)
    if terms and (refusal := _unfit_for_bias(site)):
        return Action.on("unfused", site.node, refusal, "TL521")
    library = _library(site, mask, terms)
    itemsize = graphs.type_of(query.node).element.numpy.itemsize
    bias = 0 if not terms else itemsize if all(term.hides for term in terms) else 4
    heads = Heads(query.heads, site.groups, query.length, key.length, query.width, site.value.width, itemsize, bias)
    chosen = choose(heads, mask, int(SHARE * capacity), library)
    if chosen is None:
        reason = (
            f"expected blocks that fit {SHARE * capacity / 2**20:g} MiB of VMEM, got rows of {query.width} elements"
        )
        return Action.on("unfused", site.node, reason, "TL521")
    by_xla = bytes_by_xla(heads, site.is_gradient, HELD * capacity if device_kind else 0)
    if chosen[1].nbytes >= by_xla:
        moved = f"{chosen[1].nbytes / 2**20:.1f} MiB where XLA moves about {by_xla / 2**20:.1f}"
        return Action.on("unfused", site.node, f"expected fewer bytes than XLA's, got {moved}", "TL523")
    return Plan(site, heads, mask, terms, library, *chosen)


def _library(site: Attention, mask: StaticMask | None, terms: Sequence[Term]) -> Library:
    """The kernel that moves the fewest bytes of those that can do it."""
    if site.is_gradient:
        return "splash_gradient"
    is_plain = (mask is None or mask.is_causal) and not site.wants_logsumexp and _fits_flash(site)
    return "flash" if terms or is_plain else "splash"


def _fits_flash(site: Attention) -> bool:
    width = site.query.width
    return site.value.width == width and (width <= LANES or width % LANES == 0) and site.leading[-1] % site.groups == 0


def bytes_by_xla(heads: Heads, is_gradient: bool, held: float) -> int:
    """HBM bytes of an attention without a kernel, about.

    Args:
        heads: sizes.
        is_gradient: whether it is the gradients.
        held: bytes of scores that stay in VMEM: none on a CPU, which has no such memory.
    """
    passes = GRADIENT_PASSES if is_gradient else PASSES
    operands = heads.operand_bytes * (2 if is_gradient else 1)
    return operands + (passes * heads.score_bytes if heads.score_bytes > held else 0)


def _unfit(site: Attention) -> str:
    """Why no library kernel takes an attention; "" if one may."""
    query, key, value = site.query, site.key, site.value
    types = [graphs.type_of(rows.node).element for rows in (query, key, value)]
    if site.dropout:
        return "expected weights that are used as they are, got dropout"
    if len(set(types)) > 1 or types[0].torch not in (torch.float32, torch.bfloat16):
        return f"expected operands that are all f32 or all bf16, got {', '.join(map(str, types))}"
    if graphs.type_of(site.node).element != types[0]:
        return f"expected a result of the operands' type {types[0]}, got {graphs.type_of(site.node).element}"
    if query.length % LANES or key.length % LANES:
        return f"expected lengths that are multiples of {LANES}, got {query.length} and {key.length}"
    if key.heads != value.heads or query.heads % key.heads:
        return f"expected heads that share keys in equal groups, got {query.heads}, {key.heads} and {value.heads}"
    if query.width != key.width or query.width % 8 or value.width % 8:
        return f"expected rows of a multiple of 8 elements, got {query.width} and {value.width}"
    return "" if site.scale > 0 else f"expected a positive scale, got {site.scale:g}"


def _unfit_for_bias(site: Attention) -> str:
    """Why flash attention does not take an attention with terms that are no constants; "" if it does."""
    if site.is_gradient:
        return "expected a mask that depends on no input, for gradients, got one that does"
    if not _fits_flash(site):
        return f"expected, with a mask, rows of at most {LANES} or a multiple of it, got {site.query.width}"
    if any(len(graphs.type_of(term.node).shape) > len(site.leading) + 2 for term in site.terms):
        return f"expected a mask that broadcasts with scores of {len(site.leading) + 2} dimensions, got others"
    return ""
