"""Integer powers wrap, for every integer type, and whoever of base and exponent is a number."""

from __future__ import annotations

import torch

from tests.semantics.arguments import below
from tests.semantics.eager_check import Case, both_ways, check

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
INTEGERS = (*SIGNED, torch.uint8)
BASES = (0, 1, 2, 3, 5, 7, 10, 31, 100)
EXPONENTS = (0, 1, 2, 3, 7, 8, 31, 63, 64, 65, 100, 127)


def bases(dtype: torch.dtype) -> torch.Tensor:
    negative = [] if dtype == torch.uint8 else [-1, -2, -3, -100]
    return torch.tensor([*BASES, *negative], dtype=dtype)


def negative(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([-1, -2, -3, -64, -65, -127], dtype=dtype)


CASES = {
    f"{name}, {str(dtype)[6:]}": case
    for dtype in INTEGERS
    for name, case in {
        "tensor to tensor": Case(
            lambda x, y: x[:, None] ** y, lambda n, dtype=dtype: (bases(dtype), torch.tensor(EXPONENTS, dtype=dtype))
        ),
        "number to tensor": Case(
            lambda y: torch.stack([base**y for base in (0, 1, 2, 3, 31, 100)]),
            lambda n, dtype=dtype: (torch.tensor(EXPONENTS, dtype=dtype),),
        ),
        "tensor to number": Case(
            lambda x: torch.stack([x**exponent for exponent in EXPONENTS]), lambda n, dtype=dtype: (bases(dtype),)
        ),
    }.items()
}
CASES |= {
    f"negative exponents, {str(dtype)[6:]}": Case(
        lambda x, y: (x[:, None] ** y, (-1) ** y), lambda n, dtype=dtype: (bases(dtype)[1:], negative(dtype))
    )
    for dtype in SIGNED
}
CASES |= {
    "a rolling hash": Case(lambda x: (x * 31 ** torch.arange(len(x))).sum(), lambda n: (below(n * 40, n * 40),)),
    "in place": Case(lambda x: x.pow_(70), lambda n: (below(n, n),)),
    "int32 to int64": Case(lambda x, y: x**y, lambda n: (below(n, n).int(), below(n, n) + 64)),
    "a 0-d exponent": Case(lambda x, y: x**y, lambda n: (below(n, n).int(), torch.tensor(77))),
    "an exponent of 41 bits": Case(lambda x: x ** (2**40 + 1), lambda n: (below(n, n),)),
    "foreach": Case(lambda x: torch._foreach_pow([x, x + 1], 70), lambda n: (below(n, n),)),
}


@both_ways(CASES)
def test_powers(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
