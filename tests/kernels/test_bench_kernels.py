"""The nine benchmark kernels: their generated code computes the reference, and Dynamo captures the call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.kernels import KERNELS, KernelCase, Tolerance, in_dtype, low_mem_dropout
from tests.kernels.capture_graphs import captured_graphs, kernel_calls

NAMES = (
    "exp",
    "add",
    "softmax_two_pass",
    "welford",
    "attention",
    "bmm",
    "geglu",
    "low_mem_dropout",
    "swiglu",
)

# Shapes that no block size divides. Where Helion launches no inner pipeline rows lie within one block, because
# JAX 0.10.2 cannot interpret a pipeline whose last block hangs over the edge.
RAGGED = {
    "exp": [(200, 700)],
    "add": [(200, 700), (200, 700)],
    "softmax_two_pass": [(100, 1500)],
    "welford": [(50, 700), (700,), (700,)],
    "attention": [(1, 3, 300, 64), (1, 3, 700, 64), (1, 3, 700, 64)],
    "bmm": [(3, 130, 700), (3, 700, 90)],
    "geglu": [(200, 700), (200, 700)],
    "low_mem_dropout": [(200, 700)],
    "swiglu": [(200, 700), (200, 700)],
}

each_kernel = pytest.mark.parametrize("case", KERNELS, ids=lambda case: case.name)


def assert_agrees(case: KernelCase, inputs: tuple[Any, ...]) -> None:
    actual, expected = case.model(*inputs), case.reference(*inputs)
    assert actual.dtype == expected.dtype
    tolerance = case.tolerance[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute)


def test_table_lists_the_nine_kernels() -> None:
    assert tuple(case.name for case in KERNELS) == NAMES


@pytest.mark.sweep
@each_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_generated_code_computes_the_reference(
    case: KernelCase, dtype: torch.dtype, generated: Callable[..., None]
) -> None:
    generated(case.model.__globals__, case.kernel)
    assert_agrees(case, in_dtype(case.example(True), dtype))


@each_kernel
def test_generated_code_computes_ragged_shapes(case: KernelCase, generated: Callable[..., None]) -> None:
    generated(case.model.__globals__, case.kernel)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=generator) for shape in RAGGED[case.name]]
    if case.name == "low_mem_dropout":
        inputs.append(torch.tensor([-7], dtype=torch.int32))
    assert_agrees(case, tuple(inputs))


@each_kernel
def test_capture_is_one_functional_kernel_call(case: KernelCase) -> None:
    (graph,) = captured_graphs(case.model, *case.example(True))
    (call,) = kernel_calls(graph)
    assert call.kwargs["tensors_to_clone"] == ["out"]
    assert call.kwargs["tensor_args"]["out"].target in (
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
    )


def test_dropout_keeps_the_fraction_asked_for_and_scales_it() -> None:
    x = torch.ones(1024, 1024)
    kept = low_mem_dropout.reference(x, torch.tensor([5], dtype=torch.int32), p=0.4)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert (kept > 0).float().mean().item() == pytest.approx(0.6, abs=0.002)


def test_dropout_masks_of_neighbouring_seeds_and_elements_are_independent() -> None:
    x = torch.ones(1024, 1024)
    first, second = (
        low_mem_dropout.reference(x, torch.tensor([seed], dtype=torch.int32), p=0.5) > 0 for seed in (5, 6)
    )
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.002)
    assert (first[:, 1:] == first[:, :-1]).float().mean().item() == pytest.approx(0.5, abs=0.002)
    assert (first[1:] == first[:-1]).float().mean().item() == pytest.approx(0.5, abs=0.002)


def test_tolerance_refuses_negative_values() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Tolerance(-1.0, 0.0)
