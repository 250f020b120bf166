"""Grouped matrix products: ATen's, in its four forms, and the operator of transformers' mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.integrations import moe

from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.kernels import libraries, registry

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


@pytest.mark.sweep
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("form", FORMS)
def test_grouped_mm_equals_eager(form: str, offsets: list[int]) -> None:
    torch.manual_seed(0)
    left, right = (torch.randn(shape, dtype=torch.bfloat16) for shape in FORMS[form])
    ends = None if form == "batched" else torch.tensor(offsets, dtype=torch.int32)

    def function(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grouped_mm(left, right, offs=ends)

    torch.testing.assert_close(compiled(function)(left, right), function(left, right), **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_what_eager_leaves_undefined_is_no_changed_result(form: str) -> None:
    """Rows of no group are as memory was: passes are verified on offsets of 0 and 1."""
    left, right = (torch.randn(shape, dtype=torch.bfloat16) for shape in FORMS[form])
    ends = torch.tensor(OFFSETS["uneven"], dtype=torch.int32)

    def function(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grouped_mm(left, right, offs=ends)

    found = torch.compile(function, backend="helion_tpu", options={"verify": True})(left, right, ends)
    torch.testing.assert_close(found, function(left, right, ends), **TOLERANCE[torch.bfloat16])


@pytest.mark.sweep
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ends", [(32, 64, 96, 128), (3, 3, 100, 120)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "bf16"])
def test_megablox_gives_what_xla_does(dtype: torch.dtype, ends: tuple[int, ...], transposed: bool) -> None:
    """Rows past the last group are zeros, whatever weights are."""
    torch.manual_seed(0)
    rows, weights = torch.randn(128, 96), torch.randn(4, 160, 96)
    given = [jnp.asarray(one.numpy(), str(dtype).removeprefix("torch.")) for one in (rows, weights)]
    given[1] = given[1] if transposed else given[1].swapaxes(1, 2)
    found = libraries.by_megablox(*given, libraries.sizes_of(jnp.asarray(ends)), transposed, given[0].dtype, True)
    expected = libraries.rows_times_groups(*given, jnp.asarray(ends), transposed)
    assert not np.asarray(expected[ends[-1] :]).any()
    np.testing.assert_allclose(*(np.asarray(one, np.float32) for one in (found, expected)), **TOLERANCE[dtype])


def test_a_v6e_multiplies_experts_of_a_size_that_libtpu_refuses() -> None:
    shapes = ((2048, 2048), (2, 4096, 2048))
    rows, weights = (torch.empty(shape, dtype=torch.bfloat16) for shape in shapes)
    ends = torch.tensor([1024, 2048], dtype=torch.int32)

    def function(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grouped_mm(rows, weights.mT, offs=ends)

    for chip, kernels in ((chips.find("v6e"), 1), (chips.find("v5e"), 0)):
        captured = aot.capture(function, (rows, weights, ends), {}, chip, {}, ())
        program = aot.compile_captured(captured, chip, True, simulate=False)
        assert sum("tpu_custom_call" in one.opcode for one in program.entry_operations) == kernels


@pytest.mark.sweep
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
