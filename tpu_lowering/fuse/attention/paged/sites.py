"""Attention of one query a sequence over keys and values that are gathered from pages: the kernel reads the pages.

Before::

    k = reshape(permute(aten.index(k_pages, [None, table]), [1, 0, 2, 3, 4]), [sequences, heads, keys, width])
    v = reshape(permute(aten.index(v_pages, [None, table]), [1, 0, 2, 3, 4]), [sequences, heads, keys, width])
    mask = where(reshape(aten.lt(arange(keys), lengths), [sequences, 1, 1, keys]), 0, -inf)
    out = scaled_dot_product_attention(query, k, v, mask)

After::

    call = kernel_call(paged_attention, (query, k_pages, v_pages, table, lengths))
    out = getitem(call, 0)

XLA writes the gathered pages to an array of their own and reads that again. Pages of a cache that holds those of all
layers stay where they are (``paged.stacked_caches``). The mask has to be one of lengths
(``attention.length_masks``), and keys and values gathered by one table (``paged.gathered_pages``).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from tpu_lowering.fuse.attention.blocks import laid_out
from tpu_lowering.fuse.attention.length_masks import Lengths, lengths_of
from tpu_lowering.fuse.attention.masks import parts
from tpu_lowering.fuse.attention.paged.gathered_pages import Paged, gather_of, paged, same_table
from tpu_lowering.fuse.attention.paged.kernel import PagedCall, block_of, paged_kernel, vmem_bytes
from tpu_lowering.fuse.attention.paged.stacked_caches import Places, is_apart, is_part
from tpu_lowering.fuse.attention.plans import unfit
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.fuse.xla.vmem_limits import asked, kernel_bytes
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import LANES, SUBLANES, Chip
from tpu_lowering.ir.kernels import kernel_call


@dataclasses.dataclass(frozen=True)
class PagedPlan:
    """An attention over pages, and the kernel call that it becomes.

    Attributes:
        site: where it is.
        key, value: its pages ...
        places: ... and where they are.
        lengths: how many keys each sequence sees.
        block: pages in a block of the kernel.
        nbytes, by_xla: bytes of HBM with the kernel, and by XLA alone.
    """

    site: Attention
    key: Paged
    value: Paged
    places: tuple[Places, Places]
    lengths: Lengths
    block: int
    nbytes: int
    by_xla: int

    def fuse(self, graph: fx.Graph, chip: Chip, replaced: dict[fx.Node, fx.Node]) -> Action:
        """Replaces the attention by a call of the kernel; ``replaced`` has, and gets, what each node is now."""
        site, key = self.site.moved(replaced), self.key
        (old,) = (node for node in site.outputs if node is not None)
        is_operator = old.target is operator.getitem
        anchor = old.args[0] if is_operator else old
        assert isinstance(anchor, fx.Node)
        lengths = _now(self.lengths, replaced)
        with graphs.inserting_for(anchor):
            query = site.query.placed(graph)
            pages = [self._pages(graph, places, replaced) for places in self.places]
            table = _table(graph, key, replaced)
            counts = lengths.placed(graph, key.sequences, key.keys)
            call = PagedCall(
                query=graphs.type_of(query),
                pages=graphs.type_of(pages[0]),
                places=self._steps,
                heads=key.heads,
                numbers=key.all_pages,
                sequences=key.sequences,
                table=key.pages,
                scale=site.scale,
                block=self.block,
                empty=site.empty,
                vmem=asked(_vmem_bytes(site, key), chip),
                where=graphs.source_line(site.node),
                chip=chip,
            )
            kernel = paged_kernel(call)
            node = graphs.call(graph, kernel_call, kernel, (query, *pages, table, counts))
            result = graphs.reshaped(graph, graphs.call(graph, operator.getitem, node, 0), graphs.type_of(old).shape)
        moved = f"{self.nbytes / 2**20:.1f} MiB where XLA moves about {self.by_xla / 2**20:.1f}"
        blocks = f"blocks of {self.block * key.size} keys"
        action = Action.on("fused", site.node, f"attention is the kernel {kernel.name}, {blocks}: {moved}")
        graphs.replace(old, result)
        replaced[old] = result
        return action

    @property
    def _steps(self) -> tuple[int, int, int] | None:
        """The places as the kernel takes them; None if they are by head."""
        at = self.places[0]
        return None if at.is_by_head(self.key.heads) else (at.start, at.head_step, at.page_step)

    def _pages(self, graph: fx.Graph, places: Places, replaced: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The pages as the kernel takes them, at the graph's insertion point."""
        heads = self.key.heads if self._steps is None else 1
        node = replaced.get(places.node, places.node)
        return graphs.reshaped(graph, node, (heads, places.total // heads, self.key.size, self.key.width))


def paged_plan(site: Attention, chip: Chip) -> PagedPlan | Action | None:
    """What becomes of an attention of one query a sequence over gathered keys: a plan, or the refusal.

    Returns:
        None for any other attention.
    """
    gather = gather_of(site.key)
    if gather is None or site.query.length != 1 or site.is_gradient or site.wants_logsumexp or site.is_causal:
        return None
    if site.dropout or site.shared is not None or site.soft_cap is not None or unfit(site):
        return None
    key = paged(site.key, gather)
    if key is None:
        reason = "expected keys [sequences, heads, ..] of pages that hold the rows of each head together, got others"
        return Action.on("unfused", site.node, reason, "TL521")
    other = gather_of(site.value)
    value = paged(site.value, other) if other is not None and same_table(gather, other) else None
    if value is None or not _are_alike(key, value):
        reason = "expected values that are gathered as the keys are, by the same table, got others"
        return Action.on("unfused", site.node, reason, "TL521")
    given = tuple(part for term in site.terms for part in parts(term))
    lengths = lengths_of(given, site.leading, key.sequences, key.keys)
    if lengths is None:
        reason = "expected, with pages, a mask of -inf from a length of each sequence on, or none, got another"
        return Action.on("unfused", site.node, reason, "TL521")
    places = key.places, value.places
    if not places[0].is_like(places[1]):
        places = key.own, value.own
    if refusal := _unfit_for(site, key, places[0], chip):
        return Action.on("unfused", site.node, refusal, "TL521")
    times = _times_by_xla(site, key, chip)
    by_xla = times * 2 * _gathered_bytes(site, key) + 2 * _query_bytes(site) + sum(map(_sliced_bytes, (key, value)))
    nbytes = _bytes(site, (key, value), places)
    if nbytes >= by_xla:
        held = ", which keeps the pages in VMEM and reads each once," if times == 1 else ","
        moved = f"{nbytes / 2**20:.1f} MiB where XLA moves about {by_xla / 2**20:.1f}"
        return Action.on("unfused", site.node, f"expected fewer bytes than XLA's{held} got {moved}", "TL523")
    return PagedPlan(site, key, value, places, lengths, block_of(key.pages, key.size), nbytes, by_xla)


def _are_alike(key: Paged, value: Paged) -> bool:
    """Whether keys and values have pages of one shape, gathered along one axis."""
    sizes = [(x.sequences, x.heads, x.pages, x.size, x.width, x.inner, x.all_pages) for x in (key, value)]
    return sizes[0] == sizes[1]


def _unfit_for(site: Attention, key: Paged, places: Places, chip: Chip) -> str:
    """Why the library kernel does not take pages; "" if it does."""
    if key.width % LANES:
        return f"expected, with pages, rows of a multiple of {LANES} elements, got {key.width}"
    if key.size % SUBLANES:
        return f"expected pages of a multiple of {SUBLANES} keys, got {key.size}"
    entries = key.pages + -key.pages % block_of(key.pages, key.size)
    apart = 1 if places.is_by_head(key.heads) else key.heads
    table = key.sequences * apart * (entries + 1) * 4
    if table > HEURISTICS.kernel_share * chip.smem_bytes:
        most = HEURISTICS.kernel_share * chip.smem_bytes / 2**10
        return f"expected a table of pages that fits {most:g} KiB of SMEM, got {table / 2**10:g} KiB"
    if _vmem_bytes(site, key) > kernel_bytes(chip):
        most = kernel_bytes(chip) / 2**20
        return f"expected pages that fit {most:g} MiB of VMEM, got {key.size} keys of {key.width} elements"
    return ""


def _vmem_bytes(site: Attention, key: Paged) -> int:
    """Bytes of VMEM that the kernel of a site takes."""
    itemsize = graphs.type_of(site.query.node).element.numpy.itemsize
    return vmem_bytes(block_of(key.pages, key.size) * key.size, key.width, itemsize, site.groups)


def _times_by_xla(site: Attention, key: Paged, chip: Chip) -> int:
    """How often XLA moves the gathered pages."""
    is_held = chip.is_tpu and 2 * _gathered_bytes(site, key) < HEURISTICS.kept_pages * chip.vmem_bytes
    return 1 if is_held else HEURISTICS.page_passes


def _gathered_bytes(site: Attention, key: Paged) -> int:
    """Bytes of the gathered keys, or of the values."""
    itemsize = graphs.type_of(site.query.node).element.numpy.itemsize
    return key.sequences * key.heads * key.keys * laid_out(key.width) * itemsize


def _query_bytes(site: Attention) -> int:
    """Bytes of the queries, or of the result."""
    return site.query.heads * site.query.width * graphs.type_of(site.query.node).element.numpy.itemsize


def _bytes(site: Attention, paged_rows: Sequence[Paged], places: Sequence[Places]) -> int:
    """HBM bytes with the kernel, about, if sequences see all keys.

    Queries and the result are there in float32 besides, and two numbers a head in a row of their own.
    """
    nbytes = 2 * _query_bytes(site) + site.query.heads * (4 * site.query.width + 2 * LANES) * 4
    for rows, at in zip(paged_rows, places, strict=True):
        nbytes += _gathered_bytes(site, rows)
        if any(len(node.users) > 1 for node in (*rows.path, rows.gather.node)):
            nbytes += 2 * _gathered_bytes(site, rows)  # it is gathered for the others all the same
        if at.node is rows.gather.source and is_apart(at.node):
            nbytes += 2 * graphs.type_of(rows.gather.source).nbytes  # the kernel takes a copy
    return nbytes


def _sliced_bytes(rows: Paged) -> int:
    """Bytes that XLA moves to gather from a part of a tensor, which it copies first."""
    return 2 * graphs.type_of(rows.gather.source).nbytes if is_part(rows.gather.source) else 0


def _now(lengths: Lengths, replaced: Mapping[fx.Node, fx.Node]) -> Lengths:
    node = lengths.node
    return lengths if node is None else dataclasses.replace(lengths, node=replaced.get(node, node))


def _table(graph: fx.Graph, rows: Paged, replaced: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The table as i32 [sequences, pages]."""
    node = replaced.get(rows.gather.table, rows.gather.table)
    return graphs.reshaped(graph, graphs.converted(graph, node, torch.int32), (rows.sequences, rows.pages))
