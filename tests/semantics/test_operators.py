"""Custom operators with JAX implementations: functional, mutable, with several results, lists and defaults."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import torch

import tpu_lowering
from tests.semantics.arguments import floats
from tests.semantics.eager_check import Case, both_ways, check

library = torch.library.Library("semantics", "DEF")


def define(schema: str, eager: Any, jax: Any, fake: Any = None) -> Any:
    """An operator with an implementation for eager and one in JAX."""
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, eager, "CPU")
    torch.library.register_fake(f"semantics::{name}", fake or eager, lib=library)
    operator = getattr(torch.ops.semantics, name)
    tpu_lowering.register_kernel(operator.default)(jax)
    return operator


def nothing(*args: Any, **kwargs: Any) -> None:
    return None


twice = define("twice(Tensor x) -> Tensor", lambda x: x * 2, lambda x: x * 2)
scaled = define("scaled(Tensor x, float by=3.0) -> Tensor", lambda x, by=3.0: x * by, lambda x, by=3.0: x * by)
parts = define("parts(Tensor x) -> (Tensor, Tensor)", lambda x: (x.sum(0), x + 1), lambda x: (jnp.sum(x, 0), x + 1))
total = define("total(Tensor[] xs) -> Tensor", lambda xs: sum(xs) + 0, lambda xs: sum(xs) + 0)
optional = define(
    "optional(Tensor x, Tensor? y=None) -> Tensor",
    lambda x, y=None: x.clone() if y is None else x + y,
    lambda x, y=None: x if y is None else x + y,
)


def fill_eager(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x * 5)


def add_eager(out: torch.Tensor, x: torch.Tensor) -> None:
    out.add_(x)


fill = define("fill(Tensor x, Tensor(a!) out) -> ()", fill_eager, lambda x, out: x * 5, nothing)
add = define("add(Tensor(a!) out, Tensor x) -> ()", add_eager, lambda out, x: out + x, nothing)


def filled(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    fill(x, out)
    return out


def added_twice(x: torch.Tensor) -> torch.Tensor:
    out = torch.ones_like(x)
    add(out, x)
    add(out, x * 2)
    return out


def added_to_a_part(x: torch.Tensor) -> torch.Tensor:
    out = x * 1
    add(out[1:], torch.ones_like(x[1:]))
    return out


CASES = {
    "functional": Case(lambda x: twice(x), lambda n: (floats(n, 3),)),
    "functional, twice": Case(lambda x: twice(twice(x) + 1), lambda n: (floats(n, 3),)),
    "of a transposed tensor": Case(lambda x: twice(x.t()).contiguous(), lambda n: (floats(n, 3),)),
    "of a slice": Case(lambda x: twice(x[1:, ::2]), lambda n: (floats(n, 3),)),
    "a default": Case(lambda x: scaled(x), lambda n: (floats(n),)),
    "a number": Case(lambda x: scaled(x, 0.5), lambda n: (floats(n),)),
    "two results": Case(lambda x: parts(x), lambda n: (floats(n, 3),)),
    "one of two results": Case(lambda x: parts(x)[1], lambda n: (floats(n, 3),)),
    "a list": Case(lambda x, y: total([x, y, x]), lambda n: (floats(n), floats(n) + 1)),
    "an optional argument": Case(lambda x: (optional(x), optional(x, x)), lambda n: (floats(n),)),
    "into a fresh value": Case(filled, lambda n: (floats(n, 3),)),
    "into an argument": Case(lambda x, y: fill(x, y), lambda n: (floats(n, 3), floats(n, 3) * 0)),
    "into a view of an argument": Case(lambda x, y: fill(x, y[1:]), lambda n: (floats(n, 3), floats(n + 1, 3) * 0)),
    "into a column": Case(lambda x, y: fill(x, y[:, 1]), lambda n: (floats(n), floats(n, 3) * 0)),
    "added to an argument": Case(lambda x, y: add(y, x), lambda n: (floats(n), floats(n) + 1)),
    "added twice": Case(added_twice, lambda n: (floats(n),)),
    "added to a part": Case(added_to_a_part, lambda n: (floats(n, 2),)),
    "added, and the argument returned": Case(lambda x, y: (add(y, x), y)[1], lambda n: (floats(n), floats(n) + 1)),
}  # fmt: skip


@both_ways(CASES)
def test_operators(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
