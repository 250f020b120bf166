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
behind the views that repeat the heads of keys, and keys that are gathered from pages from those (``attention.paged``).
Gradients of ``scaled_dot_product_attention`` are kernels, too; and attention whose weights are dropped becomes two of
our own, one for its gradients (``attention.dropout``). What a kernel cannot do, and what it would not do in
fewer bytes, stays as it is, each with its code.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.blocks import Library
from tpu_lowering.fuse.attention.calls import AttentionCall, Bias
from tpu_lowering.fuse.attention.dropout.fuse import call_operators, fuse
from tpu_lowering.fuse.attention.kernels import flash_kernel, splash_gradient_kernel, splash_kernel
from tpu_lowering.fuse.attention.late_biases import compute_late
from tpu_lowering.fuse.attention.masks import Known
from tpu_lowering.fuse.attention.paged.sites import PagedPlan, paged_plan
from tpu_lowering.fuse.attention.plans import AttentionPlan, added_type, bytes_by_xla, is_together, plan_of
from tpu_lowering.fuse.attention.shared_heads import share_rows
from tpu_lowering.fuse.attention.sites import Attention, find, narrowed
from tpu_lowering.fuse.attention.training import pair_with_gradients
from tpu_lowering.fuse.xla.vmem_limits import asked
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.kernels.jax_function import JaxKernel

aten = compat.aten

KERNELS: dict[Library, Callable[[AttentionCall], JaxKernel]] = {
    "flash": flash_kernel,
    "splash": splash_kernel,
    "splash_gradient": splash_gradient_kernel,
}


@dataclasses.dataclass(frozen=True)
class FuseAttention:
    """See the module's docstring."""

    name: str = "fuse_attention"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        chip = graphs.chip(graph)
        known: Known = {}
        kept = pair_with_gradients.call_operators(graph, chip, known)
        dropping = [site for site in find(graph) if site.dropout and site.node not in kept]
        unchanged, origins = call_operators(graph, dropping, chip, known)
        dropped = fuse(graph, chip, origins)
        others = [site for site in find(graph) if not site.dropout and site.node not in kept]
        plans = [_plan(narrowed(site), chip, known) for site in others]
        replaced: dict[fx.Node, fx.Node] = {}
        actions = [*kept.values(), *unchanged, *dropped]
        for plan in plans:
            if isinstance(plan, AttentionPlan):
                actions += _fused(graph, plan.moved(replaced), chip, replaced)
            else:
                actions.append(plan.fuse(graph, chip, replaced) if isinstance(plan, PagedPlan) else plan)
        if replaced or dropped:
            graphs.eliminate_dead_code(graph)
        return actions + share_rows(graph)


def _plan(site: Attention, chip: Chip, known: Known) -> AttentionPlan | PagedPlan | Action:
    """What becomes of an attention: over pages, if it is one that can be; else any other plan; else the refusal."""
    over_pages = paged_plan(site, chip)
    if isinstance(over_pages, PagedPlan):
        return over_pages
    other = plan_of(site, chip, known)
    return other if isinstance(other, AttentionPlan) or over_pages is None else over_pages


def _shape(node: fx.Node) -> tuple[int, ...]:
    return graphs.type_of(node).shape


def _fused(graph: fx.Graph, plan: AttentionPlan, chip: Chip, replaced: dict[fx.Node, fx.Node]) -> list[Action]:
    """Replaces an attention by a call of its kernel; ``replaced`` gets what each node is now."""
    site, blocks = plan.site, plan.blocks
    is_operator = site.node.target is operator.getitem
    anchor = site.node.args[0] if is_operator else site.node
    assert isinstance(anchor, fx.Node)
    with graphs.inserting_for(anchor):
        rows = [rows.placed(graph) for rows in (site.query, site.key, site.value)]
        call = _call(plan, rows, chip)
        biases, moved = [term.node for term in plan.terms], []
        if not chip.has_sparse_cores:
            biases, rows, moved = compute_late(graph, biases, rows)
        kernel = KERNELS[plan.library](call)
        given = zip((*site.given[:1], *rows, *site.given[1:], *biases), kernel.operands, strict=True)
        operands = tuple(graphs.reshaped(graph, value, slot.type.shape) for value, slot in given)
        node = graphs.call(graph, kernel_call, kernel, operands)
        results = [
            (old, graphs.reshaped(graph, graphs.call(graph, operator.getitem, node, index), _shape(old)))
            for index, old in enumerate(site.outputs)
            if old is not None
        ]
    saved = f"{plan.cost.nbytes / 2**20:.1f} MiB where XLA moves about"
    by_xla = bytes_by_xla(plan.heads, site.is_gradient, 0) / 2**20
    tiling = f"blocks of {blocks.queries} queries and {blocks.keys} keys"
    action = Action.on("fused", site.node, f"attention is the kernel {kernel.name}, {tiling}: {saved} {by_xla:.1f}")
    for term, now in zip(plan.terms, biases, strict=True):
        if now is not term.node:
            term.node.replace_all_uses_with(now, lambda user: anchor < user)
            replaced[term.node] = now
    for old, new in results:
        graphs.replace(old, new)
        replaced[old] = new
    return [action, *moved]


def _call(plan: AttentionPlan, rows: list[fx.Node], chip: Chip) -> AttentionCall:
    site, terms = plan.site, plan.terms
    rank = len(site.leading) + 2
    biases = tuple(
        Bias(term.value, term.where, (1,) * (rank - len(_shape(term.node))) + _shape(term.node)) for term in terms
    )
    query, key, value = map(graphs.type_of, rows)
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=site.scale,
        blocks=plan.blocks,
        vmem=asked(plan.cost.vmem, chip),
        where=graphs.source_line(site.node),
        chip=chip,
        mask=plan.mask,
        gives_logsumexp=site.wants_logsumexp,
        leading=site.leading,
        biases=biases,
        bias_types=tuple(graphs.type_of(term.node) for term in terms),
        narrow=all(term.hides for term in terms),
        added=added_type(site, terms),
        excludes=any(term.may_exclude for term in terms),
        outweighs=any(term.may_outweigh for term in terms),
        empty=site.empty,
        soft_cap=site.soft_cap,
        length_minor=plan.heads.length_minor,
        together=is_together(site, plan.library, plan.heads),
    )
