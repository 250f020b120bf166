"""Fuse attention: what computes it becomes one call of a library kernel of JAX's, which never writes the scores.

Before::

    bmm = aten.bmm(query, permute(key, [0, 2, 1]))
    mul = aten.mul(bmm, 0.125)
    add = aten.add(mul, causal)
    weights = aten._softmax(add, -1, False)
    out = aten.bmm(weights, value)

After::

    k = kernel_call(flash_attention, (query, key, value))
    out = getitem(k, 0)

XLA writes and reads scores and weights, twice each; the kernel keeps a block of them in VMEM. Operands are taken from
behind the views that repeat the heads of keys. Gradients of ``scaled_dot_product_attention`` are kernels, too. What a
kernel cannot do, and what it would not do in fewer bytes, stays as it is, each with its code.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention_blocks import LANES, Blocks, Cost, Heads, Library, choose
from tpu_lowering.fuse.attention_kernels import Bias, Call, flash_kernel, splash_gradient_kernel, splash_kernel
from tpu_lowering.fuse.attention_masks import StaticMask, Term, split
from tpu_lowering.fuse.attention_sites import Attention, find
from tpu_lowering.ir import graphs
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels.jax_function import JaxKernel
from tpu_lowering.passes.base import Action

aten = torch.ops.aten

SHARE = 0.75
"""Of VMEM, what a kernel may use: the compiler keeps values between operations there too."""
HELD = 0.5
"""Of VMEM, how large scores may be that XLA is expected to keep there."""
PASSES, GRADIENT_PASSES = 4, 8
"""How often XLA writes or reads all scores, or what is made of them."""


KERNELS: dict[Library, Callable[[Call], JaxKernel]] = {
    "flash": flash_kernel,
    "splash": splash_kernel,
    "splash_gradient": splash_gradient_kernel,
}


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


@dataclasses.dataclass(frozen=True)
class FuseAttention:
    """See the module's docstring."""

    name: str = "fuse_attention"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        device_kind = graphs.device_kind(graph)
        capacity = int(compat.tpu_info(device_kind or "TPU7x").vmem_capacity_bytes)
        plans = [_plan(site, capacity, device_kind) for site in find(graph)]
        actions = [_fused(graph, plan, capacity, device_kind) if isinstance(plan, Plan) else plan for plan in plans]
        if any(isinstance(plan, Plan) for plan in plans):
            graphs.eliminate_dead_code(graph)
        return actions


def _plan(site: Attention, capacity: int, device_kind: str) -> Plan | Action:
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
    if any(len(_shape(term.node)) > len(site.leading) + 2 for term in site.terms):
        return f"expected a mask that broadcasts with scores of {len(site.leading) + 2} dimensions, got others"
    return ""


def _shape(node: fx.Node) -> tuple[int, ...]:
    return graphs.type_of(node).shape


def _fused(graph: fx.Graph, plan: Plan, capacity: int, device_kind: str) -> Action:
    """Replaces an attention by a call of its kernel."""
    site, blocks = plan.site, plan.blocks
    is_operator = site.node.target is operator.getitem
    anchor = site.node.args[0] if is_operator else site.node
    assert isinstance(anchor, fx.Node)
    with graphs.inserting_for(anchor):
        rows = [rows.placed(graph) for rows in (site.query, site.key, site.value)]
        call = _call(plan, rows, capacity, device_kind)
        others = [_folded(graph, node, type_) for node, type_ in zip(site.given, _given(call), strict=False)]
        biases = [term.node for term in plan.terms]
        kernel = KERNELS[plan.library](call)
        operands = (*others[:1], *rows, *others[1:], *biases)
        node = graphs.call(graph, kernel_call, kernel, operands)
        replaced = [
            (old, _folded(graph, graphs.call(graph, operator.getitem, node, index), graphs.type_of(old)))
            for index, old in enumerate(site.outputs)
            if old is not None
        ]
    saved = f"{plan.cost.nbytes / 2**20:.1f} MiB where XLA moves about"
    by_xla = bytes_by_xla(plan.heads, site.is_gradient, 0) / 2**20
    tiling = f"blocks of {blocks.queries} queries and {blocks.keys} keys"
    action = Action.on("fused", site.node, f"attention is the kernel {kernel.name}, {tiling}: {saved} {by_xla:.1f}")
    for old, new in replaced:
        graphs.replace(old, new)
    return action


def _call(plan: Plan, rows: list[fx.Node], capacity: int, device_kind: str) -> Call:
    site, terms = plan.site, plan.terms
    rank = len(site.leading) + 2
    biases = tuple(
        Bias(term.value, term.where, (1,) * (rank - len(_shape(term.node))) + _shape(term.node)) for term in terms
    )
    query, key, value = map(graphs.type_of, rows)
    return Call(
        query, key, value, site.scale, plan.blocks, int(SHARE * capacity), graphs.source_line(site.node), device_kind,
        plan.mask, site.wants_logsumexp,
        site.leading, biases, tuple(graphs.type_of(term.node) for term in terms), all(t.hides for t in terms),
        site.empty,
    )  # fmt: skip


def _given(call: Call) -> tuple[TensorType, ...]:
    """The types of what a gradient's kernel takes besides the operands."""
    return call.result, call.result, call.logsumexp


def _folded(graph: fx.Graph, node: fx.Node, type_: TensorType) -> fx.Node:
    """A node with other sizes, the elements in the same order."""
    if _shape(node) == type_.shape:
        return node
    return graphs.call(graph, aten.reshape.default, node, list(type_.shape))
