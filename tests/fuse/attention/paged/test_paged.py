"""Attention of one query a sequence over pages of keys and values: against eager, and what is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.cases.harness import Record
from tests.fuse.attention.functions import actions, close, compiled
from tpu_lowering import aot
from tpu_lowering.fuse.attention.paged.kernel import block_of
from tpu_lowering.ir import chips
from tpu_lowering.ir.actions import Action

Function = Callable[..., torch.Tensor]
SEQUENCES, HEADS, GROUPS, PAGES, SIZE, WIDTH, ALL_PAGES = 4, 2, 4, 6, 16, 128, 30
KEYS = PAGES * SIZE
TABLE = torch.randperm(ALL_PAGES, generator=torch.Generator().manual_seed(5))[: SEQUENCES * PAGES].view(SEQUENCES, -1)
LENGTHS = torch.tensor([KEYS, 1, 37, 64])


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def given(
    dtype: torch.dtype = torch.float32, heads: int = HEADS, groups: int = GROUPS, width: int = WIDTH, size: int = SIZE
) -> list[torch.Tensor]:
    """A query, and pages of keys and of values with the heads outside."""
    query = numbers(SEQUENCES, heads * groups, 1, width, dtype=dtype)
    return [query, *numbers(2, heads, ALL_PAGES, size, width, dtype=dtype).unbind()]


def gathered(pages: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Keys [sequences, heads, keys, width] of pages [heads, pages, page, width]."""
    return pages[:, table].permute(1, 0, 2, 3, 4).reshape(len(table), pages.shape[0], -1, pages.shape[-1])


def below(lengths: torch.Tensor, keys: int) -> torch.Tensor:
    return (torch.arange(keys) < lengths[:, None])[:, None, None]


def decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    key, value = gathered(key, table), gathered(value, table)
    return sdpa(query, key, value, attn_mask=below(lengths, key.shape[-2]), enable_gqa=True)


def fused(function: Function, *operands: torch.Tensor, **options: Any) -> torch.Tensor:
    """The result of a function, whose one attention is the kernel."""
    run, record = compiled(function, **options)
    result = run(*operands)
    (action,) = actions(record)
    assert action.kind == "fused" and "attention is the kernel paged_attention, blocks of " in action.reason, action
    return result


# What becomes the kernel --------------------------------------------------------------------------------
@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("heads", "groups"), [(2, 4), (1, 8), (2, 1), (1, 3), (2, 16)])
def test_equals_eager(heads: int, groups: int, dtype: torch.dtype) -> None:
    operands = [*given(dtype, heads, groups), TABLE, LENGTHS]
    close(fused(decode, *operands), decode(*operands))


@pytest.mark.sweep
@pytest.mark.parametrize(("size", "width"), [(8, 128), (24, 256), (128, 128)])
def test_sizes_of_pages(size: int, width: int) -> None:
    """Several blocks, of which the last has less than the others."""
    operands = [*given(torch.bfloat16, width=width, size=size), TABLE, LENGTHS * size // SIZE]
    close(fused(decode, *operands), decode(*operands))


def test_interpreted_and_verified() -> None:
    operands = [*given(), TABLE, LENGTHS]
    close(fused(decode, *operands, cpu_kernels="interpret", verify=True), decode(*operands))


def test_a_length_of_zero() -> None:
    """Eager's operator gives 0."""
    operands = [*given(), TABLE]
    run, record = compiled(decode)
    for of in ((0, 0, 0, 0), (0, 40, 0, 0), (0, 0, 0, KEYS), (1, 0, 0, 33)):
        lengths = torch.tensor(of)
        result = run(*operands, lengths)
        close(result, decode(*operands, lengths))
        assert not result[lengths == 0].any()
    assert [action.kind for action in actions(record)] == ["fused"]


def test_lengths_beyond_the_table_and_below_zero() -> None:
    operands = [*given(), TABLE, torch.tensor([KEYS + 1, -3, 2**62, -(2**62)])]
    close(fused(decode, *operands), decode(*operands))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_types_of_lengths_and_table(dtype: torch.dtype) -> None:
    operands = [*given(), TABLE.int(), LENGTHS.to(dtype)]
    close(fused(decode, *operands), decode(*operands))


def test_pages_of_no_table_are_not_read() -> None:
    operands = given()
    unused = [page for page in range(ALL_PAGES) if page not in TABLE]
    assert len(unused) == ALL_PAGES - TABLE.numel()
    for pages in operands[1:]:
        pages[:, unused] = math.nan
    operands += [TABLE, LENGTHS]
    result = fused(decode, *operands)
    assert result.isfinite().all()
    close(result, decode(*operands))


def test_numbers_beyond_a_length_have_no_weight() -> None:
    """However large. NaN there is NaN in eager, where it is multiplied by a weight of 0; the kernel has less of it."""
    operands = [*given(), TABLE, LENGTHS]
    expected = decode(*operands)
    key, value = operands[1], operands[2]
    for sequence, length in enumerate(LENGTHS.tolist()):
        for at in range(length, KEYS):
            page = TABLE[sequence, at // SIZE]
            key[:, page, at % SIZE], value[:, page, at % SIZE] = 1e18, 1e18
    close(fused(decode, *operands), expected)
    key[:, TABLE[2, 3:]] = math.nan
    result, eager = fused(decode, *operands), decode(*operands)
    assert eager[2].isnan().all() and not (result.isnan() & ~eager.isnan()).any()
    close(result[[0, 1, 3]], expected[[0, 1, 3]])


# Forms --------------------------------------------------------------------------------------------------
def up_to_a_position(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    mask = torch.arange(KEYS)[None] <= (lengths - 1).view(-1, 1)
    return sdpa(query, gathered(key, table), gathered(value, table), mask.view(SEQUENCES, 1, 1, -1), enable_gqa=True)


def lengths_first(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    mask = lengths.view(-1, 1, 1, 1) > torch.arange(KEYS)
    return sdpa(query, gathered(key, table), gathered(value, table), mask, enable_gqa=True)


def counted_from_one(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    hidden = (lengths[:, None] < torch.arange(1, KEYS + 1)).view(SEQUENCES, 1, 1, KEYS)
    return sdpa(query, gathered(key, table), gathered(value, table), ~hidden, enable_gqa=True)


def added(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    mask = torch.zeros(SEQUENCES, KEYS, dtype=query.dtype)
    mask = mask.masked_fill(torch.arange(KEYS) >= lengths[:, None], -math.inf)
    return sdpa(query, gathered(key, table), gathered(value, table), mask[:, None, None], enable_gqa=True)


def one_length(*operands: torch.Tensor) -> torch.Tensor:
    """The same for all sequences, as of a cache that is filled evenly."""
    query, key, value, table, lengths = operands
    mask = torch.arange(KEYS) < lengths[2]
    return sdpa(query, gathered(key, table), gathered(value, table), mask.view(1, 1, 1, -1), enable_gqa=True)


def every_key(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, _ = operands
    return sdpa(query, gathered(key, table), gathered(value, table), scale=0.3, enable_gqa=True)


def selected(*operands: torch.Tensor) -> torch.Tensor:
    """The table in one row, and its pages by ``index_select``."""
    query, key, value, table, lengths = operands
    found = [x.index_select(1, table.flatten()).view(HEADS, SEQUENCES, KEYS, WIDTH) for x in (key, value)]
    key, value = (x.transpose(0, 1) for x in found)
    return sdpa(query, key, value, below(lengths, KEYS), enable_gqa=True)


def heads_in_pages(*operands: torch.Tensor) -> torch.Tensor:
    """Pages [pages, heads, page, width]."""
    query, key, value, table, lengths = operands
    found = [
        x.view(ALL_PAGES, HEADS, SIZE, WIDTH)[table].transpose(1, 2).reshape(SEQUENCES, HEADS, KEYS, WIDTH)
        for x in (key, value)
    ]
    return sdpa(query, *found, attn_mask=below(lengths, KEYS), enable_gqa=True)


def one_head_in_rows(*operands: torch.Tensor) -> torch.Tensor:
    """Pages [pages, page, 1, width], as of a model with one head of keys."""
    query, key, value, table, lengths = operands
    pages = [x.reshape(ALL_PAGES * HEADS, SIZE, 1, WIDTH) for x in (key, value)]
    found = [x[table].reshape(SEQUENCES, KEYS, 1, WIDTH).transpose(1, 2) for x in pages]
    return sdpa(query, *found, attn_mask=below(lengths, KEYS), enable_gqa=True)


def repeated_heads(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    found = [gathered(x, table).repeat_interleave(GROUPS, 1) for x in (key, value)]
    return sdpa(query, *found, attn_mask=below(lengths, KEYS))


def written_out(*operands: torch.Tensor) -> torch.Tensor:
    """A sequence of length 0 is NaN."""
    query, key, value, table, lengths = operands
    shape = (SEQUENCES, HEADS, GROUPS, KEYS, WIDTH)
    key, value = (
        gathered(x, table)[:, :, None].expand(shape).reshape(SEQUENCES, -1, KEYS, WIDTH) for x in (key, value)
    )
    scores = (query @ key.mT) * WIDTH**-0.5
    scores = scores.masked_fill(torch.arange(KEYS) >= lengths.view(-1, 1, 1, 1), -math.inf)
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value


FORMS = (
    up_to_a_position, lengths_first, counted_from_one, added, one_length, every_key, selected, heads_in_pages,
    one_head_in_rows, repeated_heads, written_out,
)  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("function", "dtype"),
    [*((function, torch.float32) for function in FORMS), *((x, torch.bfloat16) for x in (heads_in_pages, written_out))],
)
def test_forms(function: Function, dtype: torch.dtype) -> None:
    operands = [*given(dtype), TABLE, torch.tensor([KEYS, 0, 37, 64])]
    close(fused(function, *operands), function(*operands))


@pytest.mark.parametrize("function", [decode, heads_in_pages])
def test_repeated_and_negative_pages(function: Function) -> None:
    table = TABLE.clone()
    table[0], table[1, ::2], table[2] = 7, -1, -ALL_PAGES
    operands = [*given(), table, LENGTHS]
    close(fused(function, *operands), function(*operands))


def of_a_layer(*operands: torch.Tensor) -> torch.Tensor:
    """Pages [layers, heads, pages, page, width]."""
    query, key, value, table, lengths = operands
    return decode(query, key[1], value[1], table, lengths)


def of_heads_apart(*operands: torch.Tensor) -> torch.Tensor:
    """Pages [pages, layers, heads, page, width], those of a head and layer far apart, and some of the pages."""
    query, key, value, table, lengths = operands
    found = [x.view(3 * ALL_PAGES, 3, HEADS, SIZE, WIDTH)[::2, 2].transpose(0, 1) for x in (key, value)]
    return decode(query, *found, table, lengths)


def of_both(*operands: torch.Tensor) -> torch.Tensor:
    """Keys and values in one tensor: they have not the same numbers there, so they are copied."""
    query, key, _, table, lengths = operands
    return decode(query, key[0], key[1], table, lengths)


@pytest.mark.sweep
@pytest.mark.parametrize("function", [of_a_layer, of_heads_apart, of_both])
def test_pages_inside_of_larger_tensors(function: Function) -> None:
    """Whatever else is in there."""
    caches = numbers(2, 3 * 3, HEADS, ALL_PAGES, SIZE, WIDTH)
    operands = [given()[0], *caches.unbind(), TABLE, LENGTHS]
    close(fused(function, *operands), function(*operands))


def test_one_sequence_and_one_page() -> None:
    query, key, value = given()
    for table, lengths in ((TABLE[:1], LENGTHS[2:3]), (TABLE[:, :1], torch.tensor([16, 1, 9, 0]))):
        operands = query[: len(table)], key, value, table, lengths
        torch._dynamo.reset()
        close(fused(decode, *operands), decode(*operands))


def test_after_a_new_token_is_stored() -> None:
    """A step of decoding, whose second attention has what the first gives as its query."""

    def function(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, at: torch.Tensor
    ) -> Any:
        page = table.gather(1, (at // SIZE)[:, None])[:, 0]
        key[:, page, at % SIZE] = query[:, :HEADS, 0].transpose(0, 1)
        return decode(decode(query, key, value, table, at + 1), key, value, table, at + 1)

    operands, mine = ([*given(), TABLE, LENGTHS - 1] for _ in range(2))
    run, record = compiled(function)
    close(run(*mine), function(*operands))
    close(mine[1], operands[1])
    assert [action.kind for action in actions(record)] == ["fused", "fused"]


def test_blocks() -> None:
    """At most 512 keys, in blocks of one size that pad the table least."""
    assert [block_of(*of) for of in ((32, 16), (33, 16), (128, 16), (67, 16), (5, 1024), (1, 8))] == [
        32,
        17,
        32,
        23,
        1,
        1,
    ]


# What stays ---------------------------------------------------------------------------------------------
def kept(function: Function, *operands: torch.Tensor) -> str:
    """The one refusal of a function, which runs as it would without the pass."""
    torch._dynamo.reset()
    run, record = compiled(function)
    close(run(*operands), function(*operands))
    (action,) = actions(record)
    assert action.kind == "unfused"
    return f"[{action.code}] {action.reason}"


def other_tables(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    return sdpa(query, gathered(key, table), gathered(value, table + 1), below(lengths, KEYS), enable_gqa=True)


def a_window(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    mask = below(lengths, KEYS) & ~below(lengths - 20, KEYS)
    return sdpa(query, gathered(key, table), gathered(value, table), mask, enable_gqa=True)


def last_keys(*operands: torch.Tensor) -> torch.Tensor:
    query, key, value, table, lengths = operands
    return sdpa(query, gathered(key, table), gathered(value, table), ~below(KEYS - lengths, KEYS), enable_gqa=True)


def of_finite_numbers(*operands: torch.Tensor) -> torch.Tensor:
    """A sequence of length 0 is the mean of all values."""
    query, key, value, table, lengths = operands
    mask = torch.where(below(lengths, KEYS), 0.0, torch.finfo(query.dtype).min)
    return sdpa(query, gathered(key, table), gathered(value, table), mask, enable_gqa=True)


def of_heads(*operands: torch.Tensor) -> torch.Tensor:
    """A length for each head."""
    query, key, value, table, lengths = operands
    mask = torch.arange(KEYS) < lengths.repeat(HEADS * GROUPS // len(lengths))[None, :, None, None]
    return sdpa(query, gathered(key, table), gathered(value, table), mask, enable_gqa=True)


def rows_of_heads(*operands: torch.Tensor) -> torch.Tensor:
    """Pages [pages, page, heads, width]."""
    query, key, value, table, lengths = operands
    pages = [x.view(ALL_PAGES, SIZE, HEADS, WIDTH) for x in (key, value)]
    found = [x[table].reshape(SEQUENCES, KEYS, HEADS, WIDTH).transpose(1, 2) for x in pages]
    return sdpa(query, *found, attn_mask=below(lengths, KEYS), enable_gqa=True)


def pages_too(*operands: torch.Tensor) -> Any:
    query, key, value, table, lengths = operands
    keys, values = gathered(key, table), gathered(value, table)
    return sdpa(query, keys, values, below(lengths, KEYS), enable_gqa=True) + (keys + values).amax()


def two_queries(*operands: torch.Tensor) -> torch.Tensor:
    query, *others = operands
    return decode(query.repeat(1, 1, 2, 1), *others)


def test_refusals() -> None:
    operands = [*given(), TABLE, LENGTHS]
    inline(
        kept(other_tables, *operands[:3], TABLE.clamp(max=ALL_PAGES - 2), LENGTHS),
        """[TL521] expected values that are gathered as the keys are, by the same table, got others""",
    )
    another = "[TL521] expected, with pages, a mask of -inf from a length of each sequence on, or none, got another"
    for function in (a_window, last_keys, of_finite_numbers, of_heads):
        assert kept(function, *operands) == another
    inline(
        kept(rows_of_heads, *operands),
        """[TL521] expected keys [sequences, heads, ..] of pages that hold the rows of each head together, got others""",
    )
    inline(
        kept(pages_too, *operands), """[TL523] expected fewer bytes than XLA's, got 2.4 MiB where XLA moves about 2.3"""
    )
    inline(
        kept(decode, *given(width=64), TABLE, LENGTHS),
        """[TL521] expected, with pages, rows of a multiple of 128 elements, got 64""",
    )
    inline(kept(decode, *given(size=12), TABLE, LENGTHS), """[TL521] expected pages of a multiple of 8 keys, got 12""")
    inline(
        kept(decode, *(x.double() for x in given()), TABLE, LENGTHS),
        """[TL521] expected operands that are all f32 or all bf16, got f64, f64, f64""",
    )
    inline(
        kept(two_queries, *operands),
        """[TL523] expected fewer bytes than XLA's, got 8.4 MiB where XLA moves about 0.9""",
    )


def for_tpu(function: Function, *operands: torch.Tensor) -> Action:
    """What becomes of the one attention of a function that is compiled for a tpu7x."""
    record = Record()
    aot.capture(function, operands, {}, chips.find("tpu7x"), {"fuse": "tpu"}, (record,))
    (action,) = [a for a in record.actions if a.code.startswith("TL52") or a.reason.startswith("attention")]
    return action


def test_pages_that_fit_vmem_stay_with_xla() -> None:
    action = for_tpu(decode, *given(torch.bfloat16), TABLE, LENGTHS)
    inline(
        f"[{action.code}] {action.reason}",
        """[TL523] expected fewer bytes than XLA's, which keeps the pages in VMEM and reads each once, got 0.5 MiB where XLA moves about 0.4""",
    )


def test_pages_that_do_not() -> None:
    table = torch.zeros(16, 64, dtype=torch.int64)
    query, *pages = (numbers(*of, dtype=torch.bfloat16) for of in ((16, 32, 1, 128), *((8, 64, 16, 128),) * 2))
    inline(
        for_tpu(decode, query, *pages, table, table[:, 0]).reason,
        """attention is the kernel paged_attention, blocks of 512 keys: 65.8 MiB where XLA moves about 192.2""",
    )


def test_refusals_of_large_tables_and_pages() -> None:
    query, key, value = (numbers(*shape, dtype=torch.bfloat16) for shape in ((64, 1, 1, 128), *((1, 2, 8, 128),) * 2))
    table, lengths = torch.zeros(64, 4000, dtype=torch.int64), torch.full((64,), 9)
    inline(
        kept(decode, query, key, value, table, lengths),
        """[TL521] expected a table of pages that fits 768 KiB of SMEM, got 1008.25 KiB""",
    )
    query, key, value = (
        numbers(*shape, dtype=torch.bfloat16) for shape in ((1, 1, 1, 128), *((1, 1, 2**17, 128),) * 2)
    )
    inline(
        kept(decode, query, key, value, torch.zeros(1, 1, dtype=torch.int64), torch.tensor([9])),
        """[TL521] expected pages that fit 48 MiB of VMEM, got 131072 keys of 128 elements""",
    )
