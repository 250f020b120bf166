"""Operators on lists of tensors equal eager, in every overload that optimisers and clipping use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

SHAPES = ((3,), (2, 4), ())


def tensors(seed: int, offset: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).abs() + 0.1 + offset for shape in SHAPES]


A, B, C = tensors(0), tensors(1, 0.5), tensors(2)
NUMBERS = [2.0, 0.5, 3.0]
NUMBER = torch.tensor(1.5)

CALLS: dict[str, Callable[[], object]] = {
    "add, list, alpha": lambda: torch._foreach_add(A, B, alpha=3),
    "add, number": lambda: torch._foreach_add(A, 2),
    "add, numbers": lambda: torch._foreach_add(A, NUMBERS),
    "add, tensor, alpha": lambda: torch._foreach_add(A, NUMBER, alpha=2),
    "sub": lambda: torch._foreach_sub(A, B, alpha=0.5),
    "mul": lambda: torch._foreach_mul(A, B),
    "mul, tensor": lambda: torch._foreach_mul(A, NUMBER),
    "div, numbers": lambda: torch._foreach_div(A, NUMBERS),
    "addcmul, number": lambda: torch._foreach_addcmul(A, B, C, 0.25),
    "addcmul, numbers": lambda: torch._foreach_addcmul(A, B, C, NUMBERS),
    "addcdiv, numbers": lambda: torch._foreach_addcdiv(A, B, C, NUMBERS),
    "lerp, number": lambda: torch._foreach_lerp(A, B, 0.3),
    "lerp, list": lambda: torch._foreach_lerp(A, B, C),
    "maximum, list": lambda: torch._foreach_maximum(A, B),
    "maximum, number": lambda: torch._foreach_maximum(A, 0.7),
    "minimum, numbers": lambda: torch._foreach_minimum(A, NUMBERS),
    "clamp_min": lambda: torch._foreach_clamp_min(A, 0.7),
    "pow, of a number": lambda: torch._foreach_pow(2.0, A),
    "pow, numbers": lambda: torch._foreach_pow(A, NUMBERS),
    "sqrt": lambda: torch._foreach_sqrt(A),
    "reciprocal": lambda: torch._foreach_reciprocal(A),
    "sign": lambda: torch._foreach_sign(A),
    "neg": lambda: torch._foreach_neg(A),
    "norm": lambda: torch._foreach_norm(A, 2),
    "norm, largest": lambda: torch._foreach_norm(A, float("inf")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_lists_equal_eager(call: Callable[[], object]) -> None:
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(call, backend="helion_tpu", fullgraph=True)(), call())


def test_lists_in_place_equal_eager() -> None:
    """What a step of an optimiser with ``foreach=True`` writes to."""

    def run(function: Callable[..., None]) -> tuple[list[torch.Tensor], ...]:
        x, y, z = tensors(3), tensors(4), tensors(5)
        function(x, y, z)
        return x, y, z

    def function(x: list[torch.Tensor], y: list[torch.Tensor], z: list[torch.Tensor]) -> None:
        torch._foreach_lerp_(x, y, 0.1)
        torch._foreach_mul_(z, 0.9)
        torch._foreach_addcdiv_(x, y, z, [-1.0, -2.0, -3.0])
        torch._foreach_copy_(y, x)
        torch._foreach_zero_(z)

    torch._dynamo.reset()
    torch.testing.assert_close(run(torch.compile(function, backend="helion_tpu", fullgraph=True)), run(function))
