"""Biases of queries and keys: in which type a kernel has them, queries that see no key, and bytes on a chip."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from tests.cases.harness import capture, normalised
from tests.fuse.attention.functions import close, compiled
from tpu_lowering import aot
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.ir import chips, graphs

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")

Function = Callable[..., torch.Tensor]


def rows(*sizes: int, dtype: torch.dtype = bf16) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(len(sizes))).to(dtype)


def unscaled(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x * 0.5, x, bias, scale=1.0)


def scaled(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x * 0.5, x, bias)


def shared_keys(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    key = x[:, :2] * 0.5
    return F.scaled_dot_product_attention(x, key, key, bias, scale=1.0, enable_gqa=True)


def masked_too(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    hidden = torch.where(x[:, :1, :, 0] > 2, -math.inf, 0.0).to(x.dtype)
    return F.scaled_dot_product_attention(x, x * 0.5, x, bias + hidden[:, None], scale=1.0)


def bias_types(function: Function, *given: torch.Tensor) -> list[str]:
    """The element types of what the library's kernel is given."""
    graph = normalised(capture(function, *given)).graph
    FuseAttention()(graph)
    (node,) = graphs.kernel_calls(graph)
    (call,) = graphs.kernel_of(node).calls()
    return [str(variable.aval.dtype) for variable in call.invars]


@pytest.mark.parametrize(
    ("function", "dtype", "wanted"),
    [
        (unscaled, bf16, "bfloat16"),
        (shared_keys, bf16, "bfloat16"),
        (scaled, bf16, "float32"),
        (masked_too, bf16, "float32"),
        (unscaled, torch.float32, "float32"),
    ],
)
def test_a_bias_stays_narrow_where_nothing_is_lost(function: Function, dtype: torch.dtype, wanted: str) -> None:
    given = rows(2, 4, 256, 64, dtype=dtype), rows(4, 256, 256, dtype=dtype)
    assert bias_types(function, *given)[-1] == wanted


@pytest.mark.parametrize("function", [unscaled, shared_keys, scaled, masked_too])
@pytest.mark.parametrize("dtype", [bf16, torch.float32], ids=str)
def test_a_query_without_keys_gives_zeros(function: Function, dtype: torch.dtype) -> None:
    x, bias = rows(2, 4, 256, 64, dtype=dtype), rows(4, 256, 256, dtype=dtype)
    bias[1, 7], bias[2, :, 100:], bias[3, 5] = -math.inf, -math.inf, torch.finfo(dtype).min
    mine = compiled(function)[0](x, bias)
    assert not mine[:, 1, 7].any()
    close(mine, function(x, bias))


def layer(x: torch.Tensor, bias: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    query, key, value = (F.linear(x, weight).unflatten(-1, (8, 64)).transpose(1, 2) for weight in first)
    made = F.scaled_dot_product_attention(query, key, value, bias, scale=1.0)
    return F.linear(made.transpose(1, 2).flatten(2), last) + x


def test_a_chip_selects_with_the_next_product() -> None:
    given = (16, 512, 512), (8, 512, 512), (3, 512, 512), (512, 512)
    captured = aot.capture(layer, tuple(torch.empty(*size, dtype=bf16) for size in given), {}, TPU7X, {}, ())
    made = aot.compile_captured(captured, TPU7X, True, simulate=False)
    heads = 16 * 8 * 512 * 128 * 2  # rows of 64 are laid out as 128
    written = [one for one in made.entry_operations if one.hbm_bytes_written >= heads]
    assert len(written) <= 4, [one.name for one in written]
    assert not [one for one in made.entry_operations if one.opcode == "copy" and one.hbm_bytes_written >= heads]
