"""Attention of bfloat16 that code computes in float32 is a kernel of bfloat16: values, what is left alone, and bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.cases.harness import capture, normalised
from tests.fuse.attention.functions import close, compiled, rows, trained
from tpu_lowering import aot
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.ir import chips, graphs

Function = Callable[..., torch.Tensor]
TPU7X = chips.find("tpu7x")
bf16, f32 = torch.bfloat16, torch.float32


def of_other_width(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Values narrower than keys, as latent attention has them: torch takes this apart, in float32."""
    return sdpa(query, key, value[..., :16], is_causal=True)


def of_wider_values(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query[..., :24], key[..., :24], value, is_causal=True)


def in_float32(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = query.float() @ key.float().mT / 8
    return (scores.softmax(-1) @ value.float()).to(bf16)


def shared_keys(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    key, value = (one[:, :1].expand(-1, 4, -1, -1).float() for one in (key, value))
    return ((query.float() @ key.mT).softmax(-1) @ value).to(bf16).transpose(1, 2)


def used_in_float32(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query.float() @ key.float().mT).softmax(-1) @ value.float()


def of_a_sum(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Keys that are no longer what bfloat16 holds."""
    return ((query.float() @ (key.float() + 1e-3).mT).softmax(-1) @ value.float()).to(bf16)


def operands() -> list[torch.Tensor]:
    return [rows(4, bf16, seed) for seed in range(3)]


def types(function: Function) -> list[str]:
    """The types of a kernel's operands."""
    run, _ = compiled(function)
    given = operands()
    close(run(*given), function(*given))
    graph = normalised(capture(function, *given)).graph
    FuseAttention()(graph)
    (node,) = graphs.kernel_calls(graph)
    return [str(graphs.type_of(one).element) for one in graphs.operands_of(node) if one is not None]


@pytest.mark.parametrize("function", [of_other_width, of_wider_values, in_float32, shared_keys])
def test_operands_stay_narrow(function: Function) -> None:
    assert types(function) == ["bf16", "bf16", "bf16"]


@pytest.mark.parametrize("function", [used_in_float32, of_a_sum])
def test_others_stay_wide(function: Function) -> None:
    assert types(function) == ["f32", "f32", "f32"]


@pytest.mark.sweep
@pytest.mark.parametrize("function", [of_other_width, of_wider_values, in_float32, shared_keys, of_a_sum])
def test_gradients_equal_eager(function: Function) -> None:
    _, pairs = trained(function, operands(), verify=True)
    for mine, theirs in pairs:
        close(mine, theirs)


def test_a_chip_moves_half_as_much() -> None:
    query, key = (torch.empty(1, 8, 4096, 192, dtype=bf16) for _ in range(2))
    value = torch.empty(1, 8, 4096, 128, dtype=bf16)
    function: Function = lambda query, key, value: sdpa(query, key, value, is_causal=True)  # noqa: E731
    captured = aot.capture(function, (query, key, value), {}, TPU7X, {}, ())
    made = aot.compile_captured(captured, TPU7X, True, simulate=False)
    (kernel,) = [one for one in made.entry_operations if one.opcode.startswith("custom-call")]
    narrow = 2 * 8 * 4096 * (2 * 256 + 2 * 128)  # rows of 192 are laid out as 256
    assert kernel.hbm_bytes_read + kernel.hbm_bytes_written < 1.2 * narrow
    assert made.hbm_bytes < 2.2 * narrow


def test_a_chip_reads_keys_once_for_the_last_query() -> None:
    """As where a decoder's last layer gives the logits of one token: nothing is computed of the other queries."""
    query, hidden = (torch.empty(1, 8, 4096, 192, dtype=bf16) for _ in range(2))

    def function(query: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return sdpa(query, hidden, hidden[..., :128], is_causal=True).transpose(1, 2)[:, -1:].sin()

    captured = aot.capture(function, (query, hidden), {}, TPU7X, {}, ())
    made = aot.compile_captured(captured, TPU7X, True, simulate=False)
    assert made.hbm_bytes < 1.1 * 2 * 8 * 4096 * (256 + 256)  # keys, and values that are the first 128 of their 192
