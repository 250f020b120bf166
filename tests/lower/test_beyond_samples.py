"""Operators that torch's samples do not reach without random numbers or writes, against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree

from tests.lower.evaluate import capture, evaluate


def _check(function: Callable[..., Any], *tensors: torch.Tensor) -> None:
    expected = pytree.tree_leaves(function(*tensors))
    got = pytree.tree_leaves(evaluate([capture(function, *tensors)], [tensors]))
    assert len(got) == len(expected)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, check_stride=False)


def _gradient(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The gradient of the sum of squares of ``function`` by its first argument."""

    def gradient(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf, *rest).square().sum(), leaf)[0]

    return gradient


POOLS = {
    "2d": (F.fractional_max_pool2d, (2, 3, 9, 11), (2, 3), (4, 5)),
    "2d, one window": (F.fractional_max_pool2d, (2, 3, 9, 11), (2, 3), (1, 1)),
    "3d": (F.fractional_max_pool3d, (2, 3, 7, 9, 11), (2, 3, 2), (3, 4, 5)),
    "3d, no batch": (F.fractional_max_pool3d, (3, 7, 9, 11), (2, 3, 2), (3, 4, 5)),
}


@pytest.mark.parametrize("name", POOLS)
def test_fractional_max_pooling_for_given_samples(name: str) -> None:
    pool, shape, kernel, size = POOLS[name]
    torch.manual_seed(0)
    x, samples = torch.randn(shape), torch.rand(2, 3, len(kernel))

    def values(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        return pool(x, kernel, output_size=size, _random_samples=samples)

    _check(_gradient(values), x, samples)
    x.view(-1)[40] = float("nan")
    _check(lambda x, s: pool(x, kernel, output_size=size, return_indices=True, _random_samples=s), x, samples)


@pytest.mark.sweep
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resizing(mode: str, corners: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 13, 17)

    def resized(x: torch.Tensor) -> torch.Tensor:
        sizes = [(5, 6), (20, 30), (1, 1)]
        return torch.cat(
            [F.interpolate(x, s, mode=mode, antialias=True, align_corners=corners).flatten() for s in sizes]
        )

    _check(resized, x)
    _check(_gradient(resized), x)


def test_antialiased_resizing_by_a_factor() -> None:
    x = torch.randn(2, 3, 13, 17)
    _check(lambda x: F.interpolate(x, scale_factor=0.37, mode="bicubic", antialias=True), x)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_rows_of_an_embedding_are_limited_in_norm(norm_type: float) -> None:
    torch.manual_seed(0)
    table, indices = 3 * torch.randn(10, 4), torch.tensor([[1, 3], [3, 9]])
    _check(lambda w, i: torch.ops.aten.embedding_renorm(w, i, 1.0, norm_type), table, indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["airy_ai", "bessel_j0", "bessel_j1", "modified_bessel_k0", "modified_bessel_k1"])
def test_special_functions_far_out_and_at_the_edges(name: str, dtype: torch.dtype) -> None:
    """Infinities, NaN, zeros of both signs, and the numbers where one series hands over to the next."""
    edges = [0.0, -0.0, 1e-30, 2.0, -4.0, 8.0, 100.0, float("inf"), -float("inf"), float("nan")]
    _check(getattr(torch.special, name), torch.tensor(edges, dtype=dtype))


def test_conjugates_and_negatives_of_a_result_have_values_of_their_own() -> None:
    """In eager they share the result's memory, with a bit that says how to read it."""

    def views(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = 2 * x
        return y, y.conj(), y.conj().imag, y.imag

    x = torch.randn(3, dtype=torch.complex64)
    with torch.no_grad():
        compiled = torch.compile(views, backend="helion_tpu", fullgraph=True)
        for got, expected in zip(compiled(x), views(x), strict=True):
            torch.testing.assert_close(got, expected)


def test_running_log_sums_of_complex_numbers_stay_on_eager_s_branch() -> None:
    torch.manual_seed(0)
    x = torch.complex(9 * torch.randn(6, 4), 9 * torch.randn(6, 4))
    _check(lambda x: (x.logcumsumexp(0), x.logcumsumexp(-1)), x)


@pytest.mark.parametrize("hermitian", [False, True])
def test_ldl_of_complex_matrices_has_lapack_s_pivots(hermitian: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6, 6, dtype=torch.complex64)
    x = x + (x.mH if hermitian else x.mT)
    _check(lambda x: torch.linalg.ldl_factor_ex(x, hermitian=hermitian), x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_linspace_of_whole_numbers_is_rounded_like_eager(dtype: torch.dtype) -> None:
    low = 0 if dtype == torch.uint8 else -3

    def ranges(x: torch.Tensor, start: torch.Tensor) -> list[torch.Tensor]:
        ends = [(4.3, low, 50), (low + 0.9, 50, 7), (3, 9, 1), (5.9, 5.1, 4), (1, 2, 0)]
        tensors = [torch.linspace(start, 1, steps, dtype=dtype) for steps in (1, 9, 50)]
        tensors += [torch.linspace(1, start, steps, dtype=dtype) for steps in (1, 9, 50)]
        return [torch.linspace(*end, dtype=dtype) + x for end in ends] + tensors

    for start in (7.7, 50.0):
        _check(ranges, torch.zeros((), dtype=dtype), torch.tensor(start))


@pytest.mark.parametrize("p", [0, 0.5, 1, 2, 3, float("inf")])
def test_the_distance_of_complex_tensors_counts_imaginary_parts(p: float) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 5, dtype=torch.complex64).unbind()
    _check(lambda x, y: [torch.dist(x, y, p), torch.dist(x, y.real, p), torch.dist(x.real.half(), y.real, p)], x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_ends_of_a_narrow_logspace_are_rounded_first(dtype: torch.dtype) -> None:
    def ranges(x: torch.Tensor, start: torch.Tensor) -> list[torch.Tensor]:
        return [torch.logspace(4.3, -3, steps, dtype=dtype) + x for steps in (1, 2, 4)] + [
            torch.logspace(start, -3, steps, dtype=dtype) for steps in (1, 2)
        ]

    _check(ranges, torch.zeros((), dtype=dtype), torch.tensor(4.3))
