"""Operators that are others under another name: torch's primitives, generators that are None, numbers made tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tpu_lowering import compat

F = torch.nn.functional
prims = torch.ops.prims
UNARY = ("abs", "neg", "exp", "log", "sin", "sqrt", "rsqrt", "tanh", "erf", "floor", "sign", "reciprocal", "round")
BINARY = ("div", "mul", "add", "sub", "maximum", "minimum", "pow", "fmod", "remainder", "eq", "lt", "atan2", "hypot")


def same(function: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="helion_tpu", fullgraph=True, **options)
    for arguments in calls:
        torch.testing.assert_close(compiled(*arguments), function(*arguments))


def test_primitives() -> None:
    def function(x: torch.Tensor, n: torch.Tensor) -> list[torch.Tensor]:
        found = [getattr(prims, name)(x) for name in UNARY]
        found += [getattr(prims, name)(x, x + 1) for name in BINARY]
        found += [prims.div(n - 4, n), prims.where(x > 1, x, -x), prims.sum(x, [0]), prims.amax(x, [1])]
        return found

    same(function, (torch.rand(3, 4) + 0.5, torch.tensor([3, -7, 2])))


def test_every_primitive_that_gives_a_new_value_is_known() -> None:
    from tpu_lowering.normalise.decompositions import PRIMITIVES, decompositions

    table = decompositions()
    for overload in compat.primitives():
        schema = overload._schema
        if not schema.is_mutable and all(result.alias_info is None for result in schema.returns):
            assert overload in table or overload in PRIMITIVES, overload


def test_a_generator_that_is_none() -> None:
    """The values are those that eager draws without one."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        none: dict[str, Any] = {"generator": None}
        return (
            torch.rand(x.shape, **none),
            torch.randn(x.shape, **none),
            torch.randint(9, (4,), **none),
            torch.randint(2, 9, (4,), **none),
            torch.randperm(6, **none),
            torch.bernoulli(x, **none),
            torch.normal(0.0, 1.0, (4,), **none),
            torch.empty(4).uniform_(**none),
            torch.empty(4).exponential_(**none),
        )

    x = torch.full((4,), 0.5)
    torch._dynamo.reset()
    torch.manual_seed(0)
    drawn = torch.compile(function, backend="helion_tpu", options={"random": "torch"}, fullgraph=True)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(drawn, function(x))


NUMBERS: dict[str, Callable[..., Any]] = {
    "scaled by a size": lambda q: q * (1 / math.sqrt(q.size(-1))),
    "nearest": lambda q: F.interpolate(q[None, None], scale_factor=1.5),
    "bilinear": lambda q: F.interpolate(q[None, None], scale_factor=1.5, mode="bilinear"),
    "bicubic": lambda q: F.interpolate(q[None, None], scale_factor=0.5, mode="bicubic"),
    "squared": lambda q: q * (q.size(0) / 3) ** 2 + q.size(1) ** 0.5,
    "rounded": lambda q: q * round(q.size(0) / 3) + math.floor(q.size(1) / 2) + math.ceil(q.size(1) / 2.5),
}


@pytest.mark.parametrize("function", NUMBERS.values(), ids=NUMBERS)
def test_numbers_made_of_sizes(function: Callable[..., Any]) -> None:
    same(function, *((torch.randn(size, size + 2),) for size in (4, 6, 8)), dynamic=True)


FLOATS: dict[str, Callable[..., Any]] = {
    "arithmetic": lambda x, s, n: x * (s / n) + n / 3 + n * s - s**2,
    "functions": lambda x, s, n: x * math.sqrt(s) + math.exp(s) + math.log(s) + abs(s - n) + max(s, 0.6),
    "arguments": lambda x, s, n: torch.add(x, x, alpha=s) + torch.lerp(x, x * 2, s) + x.clamp(-s, s) + F.elu(x, s),
    "fills": lambda x, s, n: torch.full((4,), s) + torch.where(x > s, x, s * n),
}


@pytest.mark.parametrize("function", FLOATS.values(), ids=FLOATS)
def test_numbers_that_are_arguments(function: Callable[..., Any]) -> None:
    same(function, *((torch.randn(4), value, number) for value, number in ((0.5, 3), (0.7, 4), (0.9, 5))))
