"""Attention as torch calls it for torch_tpu's tensors: the decompositions' values and gradients, against eager's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tpu_lowering.normalise.attention import attention, attention_backward
from tpu_lowering.normalise.decompositions import decompositions

aten = torch.ops.aten


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_values_and_gradients(key_heads: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 5, 8), (2, key_heads, 7, 8), (2, key_heads, 7, 8)
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    mask = torch.randn(5, 7, generator=generator) if masked else None
    expected = functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    gradient = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad(expected, (q, k, v), gradient)
    with torch.no_grad():
        result, logsumexp, no_q, no_k, queries, keys, seed, offset, debug = attention(q, k, v, mask, True, scale=0.3)
        found = attention_backward(
            gradient, q, k, v, result, logsumexp, seed, offset, mask, no_q, no_k, queries, keys, 0.0, False, scale=0.3
        )
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(found, wanted)
    assert (no_q, no_k, queries, keys, debug) == (None, None, 5, 7, None)


def test_causal() -> None:
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(q, k, v, None, False, is_causal=True)[0], expected)


def test_they_are_in_the_table() -> None:
    table = decompositions()
    assert table[aten._scaled_dot_product_cudnn_attention.default] is attention
    assert table[aten._scaled_dot_product_cudnn_attention_backward.default] is attention_backward
