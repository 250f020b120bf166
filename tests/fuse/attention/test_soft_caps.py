"""Scores that are kept below a number by a hyperbolic tangent, as Gemma 2 writes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.fuse.attention.functions import LENGTH, WIDTH, actions, below, close, compiled, operands, repeated, trained

Function = Callable[..., torch.Tensor]


def bounded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, cap: float = 5.0) -> torch.Tensor:
    key, value = repeated(query, key), repeated(query, value)
    scores = torch.tanh((query @ key.mT) * WIDTH**-0.5 / cap) * cap
    added = torch.where(below().triu(-100), 0.0, torch.finfo(query.dtype).min).to(query.dtype)
    return (scores + added).softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def without_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (3 * torch.tanh((query / 3) @ key.mT)).softmax(-1) @ value


@pytest.mark.parametrize(
    ("function", "key_heads", "dtype"),
    [(bounded, 2, torch.float32), (bounded, 4, torch.bfloat16), (without_mask, 4, torch.float32)],
)
def test_equals_eager(function: Function, key_heads: int, dtype: torch.dtype) -> None:
    given = operands(dtype, key_heads)
    run, record = compiled(function)
    close(run(*given), function(*given))
    (action,) = actions(record)
    assert action.kind == "fused" and "splash_attention" in action.reason


def test_interpreted_and_verified() -> None:
    given = operands(torch.float32, 2)
    run, record = compiled(bounded, cpu_kernels="interpret", verify=True)
    close(run(*given), bounded(*given))
    assert [action.kind for action in actions(record)] == ["fused"]


# What stays ---------------------------------------------------------------------------------------------
def below_zero(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return bounded(query, key, value, cap=-5.0)


def of_masked_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = torch.where(below(), query @ key.mT, -1e4)
    return (torch.tanh(scores) * 4).softmax(-1) @ value


def twice(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.tanh(torch.tanh(query @ key.mT) * 2).softmax(-1) @ value


def with_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    seen = value[:1, :1, :, 0].unsqueeze(-2) > -0.5
    return torch.where(seen, torch.tanh(query @ key.mT) * 4, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("function", [below_zero, of_masked_scores, twice, with_mask])
def test_what_no_kernel_bounds_stays(function: Function) -> None:
    given = operands(torch.float32)
    run, record = compiled(function)
    close(run(*given), function(*given))
    assert [action.code for action in actions(record)] in ([], ["TL521"])


def test_gradients_are_those_of_operators() -> None:
    record, pairs = trained(bounded, operands(torch.float32, 2))
    assert "splash" not in record.graphs["backward"].source
    for one, other in pairs:
        close(one, other)
    assert pairs[0][0].shape[2] == LENGTH
