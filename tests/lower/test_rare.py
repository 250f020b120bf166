"""Operators that torch's database has no samples of, or only random ones, against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree

from tests.lower.evaluate import capture, evaluate

aten = torch.ops.aten

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]

INTEGERS = torch.tensor([-5, -1, 0, 3, 7])
FLOATS = torch.tensor([-1.5, 0.0, 0.25, 3.0])


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def _rrelu(training: bool) -> Callable[..., Any]:
    return lambda grad, x, noise: aten.rrelu_with_noise_backward(grad, x, noise, 0.1, 0.4, training, False)


def _pool(n: int, outputs: tuple[int, ...]) -> Callable[..., Any]:
    pool = (F.fractional_max_pool2d, F.fractional_max_pool3d)[n - 2]
    return lambda x, samples: pool(x, 2, output_size=outputs, return_indices=True, _random_samples=samples)


def _pool_gradient(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    values, indices = aten.fractional_max_pool2d(x, [2, 2], [3, 4], samples)
    return aten.fractional_max_pool2d_backward(values, x, [2, 2], [3, 4], indices)


def _pool_gradient_3d(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    values, indices = aten.fractional_max_pool3d(x, [2, 2, 1], [3, 2, 4], samples)
    return aten.fractional_max_pool3d_backward(values, x, [2, 2, 1], [3, 2, 4], indices)


CASES: dict[str, Case] = {
    "shift left of ints": (lambda x: aten.__lshift__.Scalar(x, 3), (INTEGERS,)),
    "shift right of ints": (lambda x, y: aten.__rshift__.Tensor(x, y), (INTEGERS, INTEGERS.abs())),
    "nonzero_static too few": (lambda x: torch.nonzero_static(x, size=6, fill_value=-7), (INTEGERS.reshape(5, 1),)),
    "nonzero_static too many": (lambda x: torch.nonzero_static(x, size=2), (INTEGERS,)),
    "nonzero_static of nothing": (lambda x: torch.nonzero_static(x, size=2), (torch.ones(3, 0),)),
    "repeat_interleave of known size": (
        lambda x, repeats: torch.repeat_interleave(x, repeats, output_size=6),
        (FLOATS[:3], torch.tensor([2, 0, 4])),
    ),
    "resize to fewer elements": (lambda x: aten.resize(x, [2, 1]), (FLOATS,)),
    "negative view": (lambda x: torch._neg_view(x) + 1, (FLOATS,)),
    "all true": (lambda x: (aten._is_all_true(x), aten._is_all_true(~x)), (FLOATS == FLOATS,)),
    "any true": (lambda x: (aten._is_any_true(x), aten._is_any_true(~x)), (FLOATS == FLOATS,)),
    "hash of floats": (lambda x: torch.hash_tensor(x).view(torch.int64), (FLOATS,)),
    "hash of rows": (
        lambda x: torch.hash_tensor(x, 1, keepdim=True).view(torch.int64),
        (INTEGERS.reshape(1, 5).int(),),
    ),
    "bools added and multiplied by scatter": (
        lambda x, i: (x.scatter(0, i, True, reduce="add"), x.scatter(0, i, False, reduce="multiply")),
        (FLOATS > 0, torch.tensor([0, 2])),
    ),
    "norm of complex numbers with a dtype": (
        lambda x: torch.linalg.vector_norm(x, dtype=torch.complex64),
        (torch.complex(FLOATS, FLOATS + 1),),
    ),
    "logcumsumexp beyond pi": (lambda x: x.logcumsumexp(0), (torch.complex(FLOATS, FLOATS * 2 + 3),)),
    "rrelu backward in training": (_rrelu(True), (FLOATS, FLOATS + 0.1, uniform(4))),
    "rrelu backward in evaluation": (_rrelu(False), (FLOATS, FLOATS + 0.1, uniform(4))),
    "fractional_max_pool2d": (_pool(2, (3, 4)), (uniform(2, 3, 7, 6), uniform(2, 3, 2))),
    "fractional_max_pool2d, no batch": (_pool(2, (1, 4)), (uniform(3, 7, 6), uniform(1, 3, 2))),
    "fractional_max_pool3d": (_pool(3, (3, 4, 2)), (uniform(2, 3, 7, 6, 8), uniform(2, 3, 3))),
    "fractional_max_pool3d of nothing": (_pool(3, (3, 4, 2)), (uniform(0, 3, 7, 6, 8), uniform(0, 3, 3))),
    "fractional_max_pool2d backward": (_pool_gradient, (uniform(2, 3, 7, 6), uniform(2, 3, 2))),
    "fractional_max_pool3d backward": (_pool_gradient_3d, (uniform(2, 3, 7, 6, 5), uniform(2, 3, 3))),
    "weight_norm backward": (
        lambda g, v, s: aten._weight_norm_interface_backward(g, v, s, v.norm(2, (1, 2), keepdim=True), 0),
        (uniform(4, 3, 2), uniform(4, 3, 2) + 0.5, uniform(4, 1, 1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_eager(name: str) -> None:
    function, tensors = CASES[name]
    expected = pytree.tree_leaves(function(*tensors))
    got = pytree.tree_leaves(evaluate([capture(function, *tensors)], [tensors])[0])
    assert len(got) == len(expected)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, check_stride=False)


@pytest.mark.parametrize(
    "function", [torch.linalg.cholesky, torch.linalg.inv, lambda x: torch.linalg.matrix_power(x, -2)]
)
def test_checks_of_matrices_leave_no_trace(function: Callable[..., Any]) -> None:
    """AOTAutograd writes a call with an effect for the check; no such matrix is singular."""
    torch._dynamo.reset()
    x = torch.eye(3) * 2 + uniform(3, 3) / 10
    x = x + x.T
    got = torch.compile(function, backend="helion_tpu", fullgraph=True)(x)
    torch.testing.assert_close(got, function(x))
