"""Attention that code writes out, with its gradients, as kernels: against eager, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.fuse.attention.functions import (
    LENGTH,
    WIDTH,
    a_window,
    actions,
    causal,
    compiled,
    equal,
    filled_in,
    kernels,
    operands,
    repeated,
    rows,
    trained,
    written_out,
)


def scaled_keys(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Factors before and after the product; the heads are those of a projection, and its gradient is wanted."""
    key, value = repeated(query, key * 0.5), repeated(query, value + 1)
    return torch.bmm(
        ((query * 0.5).flatten(0, 1) @ key.flatten(0, 1).mT / 2).softmax(-1),
        value.flatten(0, 1),
    ).reshape(query.shape)


def windowed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    places = torch.arange(LENGTH)
    near = (places[:, None] - places[None, :]).abs() < 100
    return torch.where(near, 0.125 * (query @ key.mT), -torch.inf).softmax(-1) @ value


Function = Callable[..., Any]


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("function", "key_heads", "dtype"),
    [
        (written_out, 2, torch.float32),
        (written_out, 2, torch.bfloat16),
        (filled_in, 4, torch.float32),
        (scaled_keys, 2, torch.float32),
        (windowed, 4, torch.float32),
    ],
)
def test_gradients(function: Function, key_heads: int, dtype: torch.dtype) -> None:
    record, pairs = trained(function, operands(dtype, key_heads))
    assert kernels(record) == ["splash_attention", "splash_attention_gradient"]
    equal(pairs, 2e-5 if dtype == torch.float32 else 6e-2)  # eager rounds the weights, and sums over heads and queries
    if key_heads == 2:
        assert all("expand" not in record.graphs[graph].at("lower").text for graph in ("forward", "backward"))


def test_a_mask_that_is_computed_is_computed_again() -> None:
    """Saved by the forward it would be an input of the backward, of which nothing is known."""
    record, pairs = trained(a_window, operands(torch.float32, 2))
    assert kernels(record) == ["splash_attention", "splash_attention_gradient"]
    equal(pairs, 2e-5)


def checkpointed_twice(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Two layers, each computed again, whose mask is computed once before them."""
    places = torch.arange(LENGTH)
    below = (places[:, None] >= places[None, :])[None, None]

    def layer(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=below)

    query = checkpoint(layer, query, key, value, use_reentrant=False)
    return checkpoint(layer, query, key, value, use_reentrant=False)


def test_a_mask_of_checkpointed_layers_is_computed_again() -> None:
    """Torch would save what two layers read, though each may compute it again."""
    record, pairs = trained(checkpointed_twice, operands(torch.float32, 4))
    gradients = ["splash_attention", "splash_attention_gradient"] * 2
    assert sorted(kernels(record)[2:]) == sorted(gradients)
    equal(pairs, 2e-5)


def step(function: Function) -> Function:
    """Forward and backward as one program."""

    def run(gradient: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result, gradients = torch.func.vjp(function, *given)
        return result, *gradients(gradient)

    return run


@pytest.mark.parametrize("function", [written_out, causal])
def test_forward_and_backward_as_one_program(function: Function) -> None:
    given = operands(torch.float32, 2)
    gradient = rows(4, torch.float32, 7).reshape(function(*given).shape)
    run, record = compiled(step(function))
    for one, other in zip(run(gradient, *given), step(function)(gradient, *given), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    assert [action.kind for action in actions(record)] == ["fused", "fused"]


def test_gradients_without_kernels_are_those_of_the_operators() -> None:
    record, pairs = trained(written_out, operands(torch.float32, 2), fuse="never")
    assert "aten._softmax_backward_data" in record.graphs["backward"].at("captured").text
    equal(pairs, 2e-5)


def test_only_some_gradients() -> None:
    """Of the query alone: nothing is summed over heads, and no gradient is of the values."""
    mine, theirs = operands(torch.float32, 2), operands(torch.float32, 2)
    run, record = compiled(written_out)
    for given, function in ((mine, run), (theirs, written_out)):
        given[0].requires_grad_()
        function(*given).square().sum().backward()
    torch.testing.assert_close(mine[0].grad, theirs[0].grad, rtol=1e-4, atol=1e-4)
    assert kernels(record) == ["splash_attention", "splash_attention_gradient"]


# What stays ---------------------------------------------------------------------------------------------
def returned(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The weights are a part of the loss, so that their gradient has two sources."""
    weights = (query @ key.mT / WIDTH).softmax(-1)
    return weights @ value + weights.amax(-1, keepdim=True)


def with_a_table(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What is added to the scores has a gradient."""
    table = query.mean(-1, keepdim=True)
    return (query @ key.mT / WIDTH + table).softmax(-1) @ value


@pytest.mark.parametrize("function", [returned, with_a_table])
def test_other_uses_of_scores_and_weights(function: Function) -> None:
    record, pairs = trained(function, operands())
    equal(pairs, 1e-4)
    assert kernels(record) == ["TL522"]


def test_a_refusal_of_the_gradients_is_that_of_the_forward() -> None:
    given = [x.half() for x in operands()]
    run, record = compiled(step(filled_in))
    run(rows(4, torch.float16, 7), *given)
    (action,) = actions(record)
    inline(action.reason, "expected operands that are all f32 or all bf16, got f16, f16, f16")
