"""``flex_attention``: rules for scores and masks, evaluated over all indices inside the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tests.cases.harness import Record, compare, compiled

Tensor = torch.Tensor

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
STARTS = torch.tensor([0, 7])


def alibi(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return score + SLOPES[h] * (n - m)


def strictly_causal(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    """The first row is masked whole."""
    return m > n


def from_start(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return (n >= STARTS[b]) & (m >= n)


def mask_of(rule: Callable[..., Tensor], query: Tensor, key: Tensor) -> BlockMask:
    return create_block_mask(rule, query.shape[0], None, query.shape[2], key.shape[2], device="cpu", BLOCK_SIZE=16)


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = mask_of(strictly_causal, query, key)
    return flex_attention(query, key, value, score_mod=alibi, block_mask=mask, enable_gqa=True)


def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = (operand.repeat_interleave(2, 1) for operand in (key, value))
    return flex_attention(query, key, value, block_mask=mask_of(from_start, query, key), scale=0.3)


def with_logsumexp(query: Tensor, key: Tensor, value: Tensor) -> Any:
    return flex_attention(query, key, value, score_mod=alibi, enable_gqa=True, return_lse=True)


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 24, 8), (2, 2, 20, 8), (2, 2, 20, 8))
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, value


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [grouped, masked, with_logsumexp], ids=lambda f: f.__name__)
def test_flex_attention(function: Callable[..., Any], dtype: torch.dtype) -> None:
    record = Record()
    compare(compiled(function, record)(*operands(dtype)), function(*operands(dtype)))
    assert len(record.graphs) == 1 and "control_flow.flex_attention" in record.source


def test_backward_is_refused_by_torch_on_the_cpu() -> None:
    query, key, value = operands(torch.float32)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="FlexAttention does not support backward on CPU"):
        compiled(grouped, Record())(query.requires_grad_(), key, value)
