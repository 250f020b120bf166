"""Types of results: operands of several types, numbers, 0-d tensors, and reductions."""

from __future__ import annotations

import operator

import torch

from tests.semantics.arguments import below, floats, ints, mask
from tests.semantics.eager_check import Case, both_ways, check

TYPES = {
    "bool": torch.bool, "uint8": torch.uint8, "int8": torch.int8, "int32": torch.int32, "int64": torch.int64,
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64,
}  # fmt: skip


def of(dtype: torch.dtype, n: int) -> torch.Tensor:
    """Whole numbers from 0 to 5, in any type."""
    return below(6, n).to(dtype)


PAIRS = {
    f"{name} of {one} and {other}": Case(
        function, lambda n, one=one, other=other: (of(TYPES[one], n), of(TYPES[other], n))
    )
    for name, function in {"sum": operator.add, "product": operator.mul}.items()
    for one, other in (
        ("bool", "bool"), ("bool", "uint8"), ("uint8", "int8"), ("int8", "int32"), ("int32", "int64"), ("int64", "bfloat16"),
        ("bfloat16", "float16"), ("float16", "float32"), ("float32", "float64"), ("uint8", "float16"), ("bool", "float64"),
    )
}  # fmt: skip

NUMBERS = {
    f"{name} of {kind}": Case(function, lambda n, kind=kind: (of(TYPES[kind], n),))
    for kind in ("bool", "uint8", "int32", "bfloat16", "float64")
    for name, function in {
        "an int added": lambda x: x + 2,
        "a float added": lambda x: x + 0.5,
        "a true quotient": lambda x: x / 4,
        "a comparison with a float": lambda x: x > 1.5,
        "a 0-d float64 added": lambda x: x + torch.tensor(1.5, dtype=torch.float64),
        "a 0-d int64 multiplied": lambda x: x * torch.tensor(3),
        "a sum": lambda x: (x.sum(), x.sum(0, dtype=torch.float32)),
        "a product and a running sum": lambda x: (x.prod(), x.cumsum(0)),
    }.items()
}

OTHERS = {
    "mean in another type": Case(lambda x: x.mean(dtype=torch.float64), lambda n: (ints(n),)),
    "where of two types": Case(lambda m, x, y: torch.where(m, x, y), lambda n: (mask(n), ints(n), floats(n))),
    "where of a number": Case(lambda m, x: torch.where(m, x, 0.5), lambda n: (mask(n), ints(n))),
    "cat of three types": Case(lambda x, y, m: torch.cat([x, y, m]), lambda n: (ints(n), floats(n), mask(n))),
    "stack of two types": Case(lambda x, y: torch.stack([x, y]), lambda n: (floats(n).half(), floats(n))),
    "floor division of integers": Case(lambda x: (x // 2, x // -2, x % 3, x % -3), lambda n: (ints(n),)),
    "true division of integers": Case(lambda x, y: x / y, lambda n: (ints(n), ints(n).abs() + 1)),
    "division by zero": Case(lambda x: (x / 0, x % 0.0), lambda n: (floats(n),)),
    "minimum of two types": Case(lambda x, y: torch.minimum(x, y), lambda n: (ints(n), floats(n))),
    "clamp of integers by floats": Case(lambda x: x.clamp(-0.5, 1.5), lambda n: (ints(n),)),
    "lerp of bfloat16": Case(lambda x, y: torch.lerp(x, y, 0.3), lambda n: (floats(n).bfloat16(), floats(n).bfloat16())),
    "shifts of int8": Case(lambda x: (x << 7, x >> 1, x << 8), lambda n: (ints(n, dtype=torch.int8),)),
    "overflow of int8": Case(lambda x: (x * 100, x + 127), lambda n: (ints(n, dtype=torch.int8),)),
    "overflow of uint8": Case(lambda x: (x - 200, -x), lambda n: (below(9, n).to(torch.uint8),)),
    "bitwise of bools and integers": Case(lambda m, x: (m & x, m | x, m ^ x, ~m), lambda n: (mask(n), ints(n))),
    "comparison of int64 beyond float32": Case(lambda x: x + 2**24 == 2**24 + 1, lambda n: (ints(n),)),
    "complex of floats": Case(lambda x: (x * 1j, (x + 1j).abs(), x.to(torch.complex64)), lambda n: (floats(n),)),
    "sum of zeros of both signs": Case(lambda x: (x * 0 + 0.0, x * 0 - 0.0, 0 + x * 0), lambda n: (floats(n),)),
    "zeros added": Case(
        lambda x: (torch.zeros_like(x) + x * 0, x * 0 + torch.zeros(x.shape[0])), lambda n: (floats(n),)
    ),
    "a reciprocal after adding 0": Case(lambda x: 1 / (x + 0.0), lambda n: (torch.tensor([-0.0, 0.0] * n),)),
    "a mask as a factor": Case(
        lambda x, m: (x * m, m * x, x * m.float(), x.masked_fill(m, torch.nan) * ~m, (x / 0) * m.to(x.dtype)),
        lambda n: (floats(n), mask(n)),
    ),
    "a comparison as a factor": Case(lambda x: (x / 0) * (x > 0), lambda n: (floats(n),)),
    "integers as floats": Case(lambda x: (x.exp(), x.sqrt(), x.sigmoid()), lambda n: (ints(n).abs(),)),
    "floats as integers": Case(lambda x: (x.long(), x.to(torch.int8), x.bool()), lambda n: (floats(n),)),
    "in place keeps the type": Case(lambda x, y: x.mul_(y), lambda n: (floats(n).half(), floats(n).double())),
    "in place into integers": Case(lambda x: x.add_(1.5), lambda n: (ints(n),)),
}  # fmt: skip


@both_ways(PAIRS | NUMBERS | OTHERS)
def test_types(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
