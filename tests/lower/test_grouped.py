"""Grouped matrix products: ATen's, in its four forms, and the operator of transformers' mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers.integrations import moe

from tpu_lowering.kernels import registry

OFFSETS = {"even": [8, 16, 24, 32], "uneven": [3, 19, 20, 32], "empty groups": [0, 0, 32, 32]}
TOLERANCE = {torch.float32: {"rtol": 1.3e-6, "atol": 1e-5}, torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2}}


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True)


FORMS = {
    "rows": ((32, 16), (4, 16, 24)),
    "columns": ((4, 24, 16), (16, 32)),
    "depth": ((16, 32), (32, 24)),
    "batched": ((4, 8, 16), (4, 16, 24)),
}


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("form", FORMS)
def test_grouped_mm_equals_eager(form: str, offsets: list[int]) -> None:
    torch.manual_seed(0)
    left, right = (torch.randn(shape, dtype=torch.bfloat16) for shape in FORMS[form])
    ends = None if form == "batched" else torch.tensor(offsets, dtype=torch.int32)

    def function(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grouped_mm(left, right, offs=ends)

    torch.testing.assert_close(compiled(function)(left, right), function(left, right), **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("offsets", [*OFFSETS.values(), [4, 9, 20, 27]], ids=[*OFFSETS, "rows past the last group"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "bf16"])
def test_experts_of_transformers_equal_eager(offsets: list[int], dtype: torch.dtype) -> None:
    """Values and both gradients; the operator has no row in any table of torch."""
    assert moe._grouped_mm_fallback is not None  # importing it defines the operator
    torch.manual_seed(0)
    rows, weights = torch.randn(32, 16, dtype=dtype), torch.randn(4, 24, 16, dtype=dtype).transpose(1, 2)
    ends, gradient = torch.tensor(offsets), torch.randn(32, 24, dtype=dtype)

    def function(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.ops.transformers.grouped_mm_fallback(rows, weights, ends)

    def run(call: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaves = [rows.clone().requires_grad_(), weights.clone().requires_grad_()]
        result = call(*leaves, ends)
        return [result, *torch.autograd.grad(result, leaves, gradient)]

    for mine, theirs in zip(run(compiled(function)), run(function), strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE[dtype])


@pytest.mark.parametrize("offsets", [[70, 70, 199, 200], [0, 1, 64, 190], [200, 200, 200, 200]])
def test_groups_of_many_rows_keep_to_themselves(offsets: list[int]) -> None:
    """Groups of more rows than are multiplied at once, and a NaN that stays in its row."""
    torch.manual_seed(0)
    rows, weights, ends = torch.randn(200, 16), torch.randn(4, 24, 16).transpose(1, 2), torch.tensor(offsets)
    rows[69, 3] = torch.nan

    def function(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.ops.transformers.grouped_mm_fallback(rows, weights, ends)

    expected = function(rows, weights, ends)
    assert expected.isnan().any(1).sum() == 1
    found = compiled(function)(rows, weights, ends)
    torch.testing.assert_close(found, expected, equal_nan=True, **TOLERANCE[torch.float32])


def test_a_registered_function_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_implementations", {})
    overload = torch.ops.transformers.grouped_mm_fallback.default
    ours = registry.implementation(overload)
    assert ours is not None and ours is registry.implementation(overload)
    registered = registry.register(overload, lambda input, weight, offs: weight[0])
    assert registry.implementation(overload) is registered
