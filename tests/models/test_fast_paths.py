"""Attention modules of torch in evaluation, which call one operator where no gradient is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

BATCH, LENGTH, WIDTH, HEADS = 2, 12, 32, 4


def causal() -> torch.Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def padding(whole: bool = False) -> torch.Tensor:
    hidden = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    hidden[0, 0 if whole else 7 :] = True
    return hidden


MASKS: dict[str, dict[str, Any]] = {
    "no mask": {},
    "causal": {"attn_mask": causal()},
    "of each head": {"attn_mask": causal().expand(BATCH * HEADS, -1, -1)},
    "numbers": {"attn_mask": torch.zeros(LENGTH, LENGTH).masked_fill(causal(), float("-inf"))},
    "padding": {"key_padding_mask": padding()},
    "nothing to see": {"key_padding_mask": padding(whole=True)},
    "both": {"attn_mask": causal(), "key_padding_mask": padding()},
}


def equal(function: Callable[..., Any], *given: Any, **named: Any) -> None:
    torch._dynamo.reset()
    with torch.no_grad():
        expected = function(*given, **named)
        found = torch.compile(function, backend="helion_tpu", fullgraph=True)(*given, **named)
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        if one is None or other is None:
            assert one is other
            continue
        limit = 1e-5 if one.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(one, other, rtol=limit, atol=limit, equal_nan=True)


def cases() -> Iterator[tuple[str, str]]:
    for mask, weights in itertools.product(MASKS, ("none", "mean", "each")):
        if (mask, weights) != ("nothing to see", "none"):  # Dynamo takes another path there than eager, which gives 0
            yield mask, weights


@pytest.mark.sweep
@pytest.mark.parametrize(("mask", "weights"), cases())
def test_attention(mask: str, weights: str) -> None:
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(BATCH, LENGTH, WIDTH)
    wanted = {"need_weights": weights != "none", "average_attn_weights": weights == "mean"}
    equal(module, x, x, x, **MASKS[mask], **wanted)


def test_attention_of_others() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    equal(module, torch.randn(BATCH, 5, WIDTH), *[torch.randn(BATCH, LENGTH, WIDTH)] * 2)


@pytest.mark.sweep
@pytest.mark.parametrize("mask", ["no mask", "causal", "padding", "both"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_encoder(mask: str, norm_first: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    activation = "gelu" if norm_first else "relu"
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 64, activation=activation, batch_first=True, norm_first=norm_first, dtype=dtype
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    names = {"attn_mask": "mask", "key_padding_mask": "src_key_padding_mask"}
    masks = {names[name]: value for name, value in MASKS[mask].items()}
    equal(
        encoder, torch.randn(BATCH, LENGTH, WIDTH, dtype=dtype), **masks, is_causal=False
    )  # else values are asked for
