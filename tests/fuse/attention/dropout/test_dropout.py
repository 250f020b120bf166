"""Attention whose weights are dropped: both kernels against eager with the same draws, and what is left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.cases.harness import Record
from tests.fuse.attention.functions import compiled, equal, kernels

Function = Callable[..., torch.Tensor]
BOTH = ["dropped_attention", "dropped_attention_gradient"]
bf16 = torch.bfloat16


def operands(
    heads: int, lengths: tuple[int, int], width: int, dtype: torch.dtype, key_heads: int = 0
) -> list[torch.Tensor]:
    """Query, key and value of a batch of two."""
    shapes = [(heads, lengths[0]), *[(key_heads or heads, lengths[1])] * 2]
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    return [torch.randn(2, *shape, width, generator=generator).to(dtype) for shape in shapes]


def dropping(p: float, **given: Any) -> Function:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        mask = {"attn_mask": masks[0]} if masks else {}
        return F.scaled_dot_product_attention(query, key, value, dropout_p=p, **given, **mask)

    return attend


def written_out(p: float) -> Function:
    """As transformers writes it."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        key, value = repeated_for(query, key), repeated_for(query, value)
        scores = torch.matmul(query, key.transpose(2, 3)) * query.shape[-1] ** -0.5
        for mask in masks:
            scores = scores + mask
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(F.dropout(weights, p=p), value).transpose(1, 2).contiguous()

    return attend


def repeated_for(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // rows.shape[1]
    return rows[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) if groups > 1 else rows


def trained(
    function: Function, given: Sequence[torch.Tensor], *others: torch.Tensor, **options: Any
) -> tuple[Record, list[tuple[Any, Any]]]:
    """(what was observed, pairs of the result and of each gradient of ``given`` with eager's of the same draws)."""
    run, record = compiled(function, random="torch", **options)
    found: list[list[torch.Tensor | None]] = []
    for attend in (run, function):
        rows = [x.detach().clone().requires_grad_() for x in given]
        torch.manual_seed(3)
        result = attend(*rows, *others)
        result.backward(torch.randn(result.shape, generator=torch.Generator().manual_seed(7)).to(result.dtype))
        found.append([result, *(one.grad for one in rows)])
    return record, list(zip(*found, strict=True))


def limit(dtype: torch.dtype) -> float:
    return 3e-5 if dtype == torch.float32 else 6e-2


def padding(keys: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """Which keys of two sequences are seen, [2, 1, 1, keys]; or what hides the others."""
    seen = torch.arange(keys) < torch.tensor([keys, keys // 3])[:, None, None, None]
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention and the sizes of its operands."""

    function: Function
    dtype: torch.dtype = torch.float32
    heads: int = 2
    lengths: tuple[int, int] = (128, 128)
    width: int = 64
    key_heads: int = 0
    others: tuple[torch.Tensor, ...] = ()


CASES = {
    "plain": Case(dropping(0.1)),
    "plain_bf16": Case(dropping(0.1), bf16),
    "half": Case(dropping(0.5), lengths=(256, 128)),
    "half_bf16": Case(dropping(0.5), bf16, lengths=(256, 128)),
    "odd_lengths": Case(dropping(0.1), lengths=(200, 136)),
    "odd_lengths_bf16": Case(dropping(0.1), bf16, lengths=(200, 136)),
    "causal": Case(dropping(0.1, is_causal=True), lengths=(256, 256), heads=4),
    "causal_bf16": Case(dropping(0.1, is_causal=True), bf16, lengths=(200, 200)),
    "padded": Case(dropping(0.1), others=(padding(128),)),
    "padded_bf16": Case(dropping(0.5), bf16, lengths=(200, 200), others=(padding(200),)),
    "of_queries": Case(dropping(0.1), lengths=(200, 128), others=(torch.randn(1, 2, 200, 128),)),
    "one_head_fills_lanes": Case(dropping(0.1), width=128, key_heads=0),
    "no_few_heads_fill_lanes": Case(dropping(0.1), heads=3, width=40),
    "shared": Case(written_out(0.1), heads=4, key_heads=2),
    "shared_apart": Case(written_out(0.1), heads=4, key_heads=2, width=128),
    "shared_bf16": Case(dropping(0.1, enable_gqa=True), bf16, heads=4, key_heads=2),
    "written": Case(written_out(0.1)),
    "written_bf16": Case(written_out(0.5), bf16),
    "written_padded_bf16": Case(written_out(0.1), bf16, others=(padding(128, bf16),)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_eager(name: str) -> None:
    case = CASES[name]
    given = operands(case.heads, case.lengths, case.width, case.dtype, case.key_heads)
    record, pairs = trained(case.function, given, *case.others)
    assert kernels(record) == BOTH
    kind = "bf16" if case.dtype == bf16 else "f32"
    assert all(f"%kernel_call: ({kind}[" in record.graphs[graph].at("lower").text for graph in ("forward", "backward"))
    equal(pairs, limit(case.dtype))
