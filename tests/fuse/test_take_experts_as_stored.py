"""Experts that a view transposes are multiplied as they lie in memory: the graph, values, gradients, bytes, guards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import tpu_lowering
from tpu_lowering import aot
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
EXPERTS, ROWS = 4, 32


def product(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)


def as_it_is(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grouped_mm(rows, weights, offs=ends)


def inputs(width: int, out: int, ends: list[int]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    rows, weights = torch.randn(ROWS, width, dtype=bf16), torch.randn(EXPERTS, out, width, dtype=bf16)
    return rows, weights, torch.tensor(ends, dtype=torch.int32)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options={"fuse": "always"})


@pytest.mark.parametrize("ends", [[8, 16, 24, 32], [3, 3, 20, 32], [0, 0, 0, 32]], ids=str)
@pytest.mark.parametrize(("width", "out"), [(16, 24), (48, 8)])
def test_values_and_gradients_equal_eager(width: int, out: int, ends: list[int]) -> None:
    given = inputs(width, out, ends)

    def run(call: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaves = [value.clone().requires_grad_() for value in given[:2]]
        result = call(*leaves, given[2])
        return [result, *torch.autograd.grad(result.float().square().sum(), leaves)]

    for mine, theirs in zip(run(compiled(product)), run(product), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-1)


def test_the_report_says_so() -> None:
    given = inputs(16, 24, [8, 16, 24, 32])
    report = tpu_lowering.explain(product, *given, options={"fuse": "always"})
    (note,) = [note for note in report.notes if note.code == "TL525"]
    assert note.nbytes == given[1].nbytes


def test_experts_that_no_view_transposes_stay() -> None:
    rows, weights, ends = inputs(16, 16, [8, 16, 24, 32])
    report = tpu_lowering.explain(as_it_is, rows, weights, ends, options={"fuse": "always"})
    assert [note for note in report.notes if note.code == "TL525"] == []


def test_a_chip_reads_the_weights_once() -> None:
    rows, weights = torch.empty(4096, 2048, dtype=bf16), torch.empty(8, 4096, 2048, dtype=bf16)
    ends = torch.arange(1, 9, dtype=torch.int32) * 512
    chip, moved = chips.find("tpu7x"), dict[str, int]()
    for fuse in ("tpu", "never"):
        captured = aot.capture(product, (rows, weights, ends), {}, chip, {"fuse": fuse}, ())
        moved[fuse] = aot.compile_captured(captured, chip, True, simulate=False).hbm_bytes
    least = rows.nbytes + weights.nbytes + 4096 * 4096 * 2
    assert moved["tpu"] <= 1.05 * least
    assert moved["never"] >= moved["tpu"] + weights.nbytes, "experts are larger than what stays in VMEM"
