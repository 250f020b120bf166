"""Decoding with a cache, which XLA does in one read of it: keys that heads share are not repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.cases.harness import Record
from tests.fuse.attention.functions import WIDTH, compiled, repeated
from tpu_lowering import aot
from tpu_lowering.ir import chips

CACHED = 256
Function = Callable[..., torch.Tensor]


def token() -> tuple[torch.Tensor, ...]:
    """A query of eight heads, caches of two, and how much of those is filled."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, WIDTH, generator=generator)
        for heads, length in ((8, 1), (2, CACHED), (2, CACHED))
    )
    return query, key, value, torch.tensor(100)


def by_expand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """As transformers calls it where there is a mask."""
    key, value = (x[:, :, None].expand(-1, -1, 4, -1, -1).reshape(2, 8, CACHED, WIDTH) for x in (key, value))
    return sdpa(query, key, value, attn_mask=(torch.arange(CACHED) < filled)[None])


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    key, value = (x[:, :, None].expand(-1, -1, 4, -1, -1).reshape(2, 8, CACHED, WIDTH) for x in (key, value))
    added = torch.where(torch.arange(CACHED) < filled, 0.0, -torch.inf)
    return (query @ key.mT / 8 + added).softmax(-1) @ value


@pytest.mark.parametrize("function", [by_expand, written_out])
def test_equals_eager(function: Function) -> None:
    run, record = compiled(function, verify=True)
    given = token()
    torch.testing.assert_close(run(*given), function(*given), rtol=2e-5, atol=2e-5)
    moved = [action.reason for action in record.actions if action.kind == "moved"]
    assert set(moved) == {"4 heads that share rows read them at once"}
    assert f"[2, 8, {CACHED}, {WIDTH}]" not in record.after.text and f"[16, {CACHED}, {WIDTH}]" not in record.after.text


def test_gradients_of_shared_heads_are_those_of_repeated_ones() -> None:
    """The rule of the operator has one product for all heads that share a key."""

    def shared(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return sdpa(query, key, value, enable_gqa=True)

    def alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return sdpa(query, repeated(query, key), repeated(query, value))

    generator = torch.Generator().manual_seed(0)
    mine, theirs = (
        [torch.randn(2, heads, 5, 16, generator=generator.manual_seed(heads)).requires_grad_() for heads in (6, 3, 3)]
        for _ in range(2)
    )
    run, _ = compiled(shared, fuse="never")
    for one, given in ((run, mine), (alone, theirs)):
        one(*given).square().sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def refusal(function: Any, *given: torch.Tensor) -> str:
    record = Record()
    aot.capture(function, given, {}, chips.find("tpu7x"), {}, (record,))
    (found,) = [action for action in record.actions if action.code.startswith("TL52")]
    return f"[{found.code}] {found.reason}"


def test_one_query_stays_with_xla() -> None:
    inline(
        refusal(by_expand, *token()),
        """[TL523] expected fewer bytes than XLA's, which keeps the scores in VMEM and reads every key and value once, got 3.0 MiB where XLA moves about 0.5""",
    )
