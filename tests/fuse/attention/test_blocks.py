"""Block sizes of attention, the bytes they are chosen by, and masks that are known while compiling."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.cases.harness import capture, normalised
from tpu_lowering.fuse.attention.blocks import Blocks, Heads, Library, choose, fetched, tiles_of
from tpu_lowering.fuse.attention.static_masks import StaticMask
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.ir import chips

REQUIRED = Heads(count=128, groups=1, queries=2048, keys=2048, width=128, value_width=128, itemsize=2)
"""bf16 [8, 16, 2048, 128]: every operand is 64 MiB."""
CAUSAL = StaticMask(2048, 2048)
VMEM = 48 << 20
MIB = 1 << 20


def chosen(heads: Heads, mask: StaticMask | None, library: Library) -> tuple[int, int, float]:
    """(queries, keys, MiB)"""
    found = choose(heads, mask, VMEM, library)
    assert found is not None
    return found[0].queries, found[0].keys, found[1].nbytes / MIB


def test_blocks_of_the_required_shape() -> None:
    assert chosen(REQUIRED, CAUSAL, "flash") == (1024, 1024, 4 * 64)
    assert chosen(REQUIRED, CAUSAL, "splash") == (1024, 1024, 4 * 64 + 4)  # and a block of the mask, of int32
    assert chosen(REQUIRED, None, "flash")[1:] == (2048, 4 * 64)


def test_keys_that_heads_share_are_fetched_once() -> None:
    shared = dataclasses.replace(REQUIRED, groups=4)
    assert chosen(shared, None, "flash")[1:] == (2048, 2 * 64 + 2 * 16)


def test_gradients_of_the_required_shape() -> None:
    """Queries and gradients of results are fetched for the second block of keys only where they see it; that of the
    queries is written for either block, and added up."""
    walks, keys, partial = 2 * 64 + 2 * 32, 4 * 64, 2 * 64 + 2 * 64 + 64
    assert chosen(REQUIRED, CAUSAL, "splash_gradient") == (1024, 1024, walks + keys + partial)


def test_bytes_of_smaller_blocks() -> None:
    """Of 1 + 2 + 3 + 4 blocks a head, one is there already: the first of the second row."""
    tiles = tiles_of(REQUIRED, CAUSAL, Blocks(512, 512))
    visited = [j for _, j in np.argwhere(tiles.any).tolist()]
    assert fetched(visited, 128, 1) == 128 * 9
    assert 2 * 64 + 128 * 9 * 512 * 2 * 128 * 2 / MIB == 416


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("visited", [[0], [0, 1], [0, 0, 1], [1, 0, 1], [0, 1, 2, 0]])
def test_fetched_is_what_a_walk_fetches(visited: list[int], heads: int, groups: int) -> None:
    walk = [(head // groups, block) for head in range(heads) for block in visited]
    assert fetched(visited, heads, groups) == 1 + sum(a != b for a, b in itertools.pairwise(walk))


@pytest.mark.parametrize("sizes", itertools.product((128, 256, 512), (128, 384)))
def test_tiles_of_a_causal_mask_are_those_of_its_rows(sizes: tuple[int, int]) -> None:
    heads = dataclasses.replace(REQUIRED, queries=512, keys=384)
    causal = StaticMask(512, 384)
    by_rows = StaticMask(512, 384, np.packbits(causal.array).tobytes())
    one, other = (tiles_of(heads, mask, Blocks(*sizes)) for mask in (causal, by_rows))
    assert np.array_equal(one.any, other.any) and one.patterns.keys() == other.patterns.keys()
    for a, b in itertools.combinations(one.patterns, 2):
        assert (one.patterns[a] == one.patterns[b]) == (other.patterns[a] == other.patterns[b])


def test_masks_keep_their_rows() -> None:
    causal = np.tri(256, 384, dtype=bool)
    window = causal & ~np.tri(256, 384, -50, dtype=bool)
    assert StaticMask.of(causal) == StaticMask(256, 384)
    assert np.array_equal(StaticMask.of(window).array, window)
    for queries, keys in ((256, 384), (384, 256)):
        assert StaticMask(queries, keys).seen == np.tri(queries, keys).sum()


def test_no_blocks_fit() -> None:
    assert choose(REQUIRED, None, 1 << 16, "flash") is None


BANDS = [(None, 0), (-50, 0), (-200, 100), (3, 130), (-300, -100), (None, None), (-20, None)]


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("sizes", itertools.product((128, 256, 512), (128, 384)))
def test_tiles_of_a_band_are_those_of_its_rows(band: tuple[int | None, int | None], sizes: tuple[int, int]) -> None:
    heads = dataclasses.replace(REQUIRED, queries=512, keys=384)
    mask = StaticMask(512, 384, b"", *band)
    by_rows = StaticMask(512, 384, np.packbits(mask.array).tobytes())
    one, other = (tiles_of(heads, given, Blocks(*sizes)) for given in (mask, by_rows))
    assert np.array_equal(one.any, other.any) and one.patterns.keys() == other.patterns.keys()
    for a, b in itertools.combinations(one.patterns, 2):
        assert (one.patterns[a] == one.patterns[b]) == (other.patterns[a] == other.patterns[b])


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("sizes", [(256, 384), (384, 256), (128, 128)])
def test_a_band_is_the_mask_of_its_rows(band: tuple[int | None, int | None], sizes: tuple[int, int]) -> None:
    mask = StaticMask(*sizes, b"", *band)
    if mask.array.any():
        assert np.array_equal(StaticMask.of(mask.array).array, mask.array) and StaticMask.of(mask.array).is_band
    assert mask.seen == mask.array.sum() and mask.shows_all_queries == mask.array.any(axis=1).all()


def test_a_large_window_fetches_what_it_sees() -> None:
    """Of 32,768 keys each query sees 1,024: the kernel fetches a small part of them, and no mask of 1 GiB."""
    long = Heads(count=32, groups=4, queries=32768, keys=32768, width=128, value_width=128, itemsize=2)
    found = choose(long, StaticMask(32768, 32768, b"", -1023, 0), 48 * MIB, "splash")
    assert found is not None
    blocks, cost = found
    assert blocks.by_position and cost.nbytes < 3 * 2**30 and not cost.wasteful


@pytest.mark.parametrize(
    ("chip", "heads", "length", "wanted"),
    [
        ("v5e", 40, 4096, "512 queries and 2048 keys"),  # 80 MiB with what such blocks ask for: not beside 45 MiB more
        ("v6e", 40, 4096, "512 queries and 2048 keys"),
        ("tpu7x", 40, 4096, "2048 queries and 2048 keys"),  # not in 64 MiB
        ("v5e", 80, 4096, "2048 queries and 2048 keys"),  # 160 MiB: not in 128 MiB
        ("v5e", 20, 4096, "2048 queries and 2048 keys"),  # 40 MiB: beside any blocks
    ],
)
def test_blocks_leave_room_for_what_fits_into_vmem_beside_smaller_ones(
    chip: str, heads: int, length: int, wanted: str
) -> None:
    def attention(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x * 0.5, x + 1)

    module = normalised(capture(attention, torch.empty(1, heads, length, 64, dtype=torch.bfloat16)))
    module.meta["chip"] = chips.find(chip)
    (action,) = FuseAttention()(module.graph)
    assert wanted in action.reason
