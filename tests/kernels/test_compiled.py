"""The nine kernels through the backend: equal to plain PyTorch, one program, no allocation left."""

from __future__ import annotations

import pytest
import torch

import tpu_lowering
from bench.kernels import KERNELS, KernelCase, in_dtype

CASES = [(case, dtype) for case in KERNELS for dtype in case.tolerance]


def name(value: object) -> str | None:
    return getattr(value, "name", None) or (
        str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None
    )


@pytest.mark.sweep
@pytest.mark.parametrize(("case", "dtype"), CASES, ids=name)
def test_equals_eager(case: KernelCase, dtype: torch.dtype) -> None:
    inputs = in_dtype(case.example(True), dtype)
    options = {"poison": True, "verify": True}
    with torch.no_grad():
        result = torch.compile(case.model, backend="helion_tpu", fullgraph=True, options=options)(*inputs)
    tolerance = case.tolerance[dtype]
    torch.testing.assert_close(result, case.reference(*inputs), rtol=tolerance.relative, atol=tolerance.absolute)


@pytest.mark.parametrize("case", KERNELS, ids=name)
def test_is_one_program_without_allocation(case: KernelCase) -> None:
    with torch.no_grad():
        report = tpu_lowering.explain(case.model, *case.example(True))
    assert report.programs_after == 1
    assert report.programs_before >= 2
    assert report.kernel_calls == 1
    assert report.allocations_removed == 1
    assert report.allocations_kept == ()
    assert report.aliases_kept == ()
    assert report.notes == ()


# Shapes that no block divides, several blocks in each direction.
RAGGED = {
    "exp": lambda: (torch.randn(130, 700),),
    "add": lambda: (torch.randn(300, 700), torch.randn(300, 700)),
    "geglu": lambda: (torch.randn(130, 700), torch.randn(130, 700)),
    "swiglu": lambda: (torch.randn(130, 700), torch.randn(130, 700)),
    "welford": lambda: (torch.randn(130, 700), torch.randn(700), torch.randn(700)),
    "bmm": lambda: (torch.randn(2, 130, 200), torch.randn(2, 200, 300)),
}


@pytest.mark.parametrize("case", [case for case in KERNELS if case.name in RAGGED], ids=name)
def test_ragged_shapes_equal_eager(case: KernelCase) -> None:
    torch.manual_seed(0)
    inputs = RAGGED[case.name]()
    with torch.no_grad():
        result = torch.compile(case.model, backend="helion_tpu", fullgraph=True, options={"poison": True})(*inputs)
    tolerance = case.tolerance[torch.float32]
    torch.testing.assert_close(result, case.reference(*inputs), rtol=tolerance.relative, atol=tolerance.absolute)
