"""Attention as code calls it and as code writes it out, and what became of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.cases.harness import Record
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir.actions import Action

LENGTH, WIDTH = 256, 64


def rows(heads: int, dtype: torch.dtype, seed: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, heads, length, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def operands(dtype: torch.dtype = torch.float32, key_heads: int = 4) -> list[torch.Tensor]:
    return [rows(4, dtype, 0), rows(key_heads, dtype, 1), rows(key_heads, dtype, 2)]


def below() -> torch.Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, is_causal=True, enable_gqa=True)


def a_window(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, attn_mask=below().triu(-100), enable_gqa=True)


def repeated(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Keys, once for each head of the query, as transformers repeats them."""
    groups = query.shape[1] // key.shape[1]
    return key[:, :, None].expand(-1, -1, groups, -1, -1).reshape(query.shape)


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    key, value = repeated(query, key), repeated(query, value)
    scores = torch.matmul(query, key.transpose(2, 3)) * WIDTH**-0.5
    hidden = torch.full((LENGTH, LENGTH), torch.finfo(query.dtype).min, dtype=query.dtype)
    weights = torch.softmax(scores + torch.triu(hidden, 1), dim=-1, dtype=torch.float32)
    return torch.matmul(weights.to(query.dtype), value).transpose(1, 2).contiguous()


def filled_in(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = (query / 8) @ key.mT
    return scores.masked_fill(~below(), -math.inf).softmax(-1) @ value


def compiled(function: Callable[..., Any], **options: Any) -> tuple[Callable[..., Any], Record]:
    torch._dynamo.reset()
    record = Record()
    backend = functools.partial(helion_tpu, options={"fuse": "always"} | options, observers=[record])
    return torch.compile(function, backend=backend, fullgraph=True), record


def actions(record: Record, graph: str = "inference") -> list[Action]:
    """What was done to attention, and what was left alone."""
    return [a for a in record.graphs[graph].actions if a.code.startswith("TL52") or a.reason.startswith("attention")]


def close(result: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert result is not None and expected is not None
    limit = 2e-5 if result.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result, expected, rtol=limit, atol=limit, equal_nan=True)


def trained(
    function: Callable[..., Any], given: Sequence[torch.Tensor], *others: torch.Tensor, **options: Any
) -> tuple[Record, list[tuple[Any, Any]]]:
    """(what was observed, pairs of the result and of each gradient of ``given`` with eager's)."""
    mine, theirs = ([x.detach().clone().requires_grad_() for x in given] for _ in range(2))
    run, record = compiled(function, **options)
    result, expected = run(*mine, *others), function(*theirs, *others)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7)).to(expected.dtype)
    result.backward(gradient)
    expected.backward(gradient)
    return record, [(result, expected), *((one.grad, other.grad) for one, other in zip(mine, theirs, strict=True))]


def equal(pairs: Sequence[tuple[Any, Any]], limit: float) -> None:
    for one, other in pairs:
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=limit, atol=limit, equal_nan=True)


def kernels(record: Record) -> list[str]:
    """What attention became in the forward and in the backward graph."""
    found = [action for graph in ("forward", "backward") for action in actions(record, graph)]
    return [action.reason.partition("is the kernel ")[2].partition(",")[0] or action.code for action in found]
