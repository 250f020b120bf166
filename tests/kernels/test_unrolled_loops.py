"""Rounds of unrolled loops at once: the same results as in Pallas's interpreter, and which operations are left."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import pallas as pl

from tpu_lowering import compat
from tpu_lowering.ir.jaxprs import with_array_literals
from tpu_lowering.kernels import jaxprs, rounds, unrolled_loops

ROWS = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel that takes rows in pieces, in an unrolled loop.

    Attributes:
        body: is given the references of x and out, both [8, columns], and the width of a piece.
        stores: how many updates of the result are left; None where nothing is merged.
        reductions: how many are left.
        dtype: of x and out.
        columns: of x, a multiple of ``width``.
    """

    body: Callable[[Any, Any, int], None]
    stores: int | None
    reductions: int = 0
    dtype: Any = jnp.float32
    columns: int = 96
    width: int = 32


def pieces(x: Any, width: int) -> list[Any]:
    return [pl.ds(at, width) for at in range(0, x.shape[1], width)]


def doubled(x: Any, out: Any, width: int) -> None:
    for at in pieces(x, width):
        out[:, at] = x[:, at] * 2


def softmax(x: Any, out: Any, width: int) -> None:
    largest, total = jnp.full(ROWS, -jnp.inf), jnp.zeros(ROWS)
    for at in pieces(x, width):
        values = x[:, at]
        grown = jnp.maximum(largest, values.max(axis=1))
        total = total * jnp.exp(largest - grown) + jnp.exp(values - grown[:, None]).sum(axis=1)
        largest = grown
    for at in pieces(x, width):
        out[:, at] = jnp.exp(x[:, at] - largest[:, None]) / total[:, None]


def masked_sums(x: Any, out: Any, width: int) -> None:
    """The last piece has a column less than it has room for."""
    total = jnp.zeros(ROWS)
    for number, at in enumerate(pieces(x, width)):
        inside = number * width + jnp.arange(width) < x.shape[1] - 1
        total = total * 3 + jnp.where(inside[None, :], x[:, at], 0.0).sum(axis=1)
    for number, at in enumerate(pieces(x, width)):
        column = number * width + jnp.arange(width)
        out[:, at] = jnp.where(column[None, :] % 2 == 0, total[:, None], x[:, at] * number)


def integer_maxima(x: Any, out: Any, width: int) -> None:
    found = [x[:, at].max(axis=1) for at in pieces(x, width)]
    for at, own in zip(pieces(x, width), reversed(found), strict=True):
        out[:, at] = x[:, at] + own[:, None]


def running(x: Any, out: Any, width: int) -> None:
    """Each round needs the whole piece of the one before."""
    before = jnp.zeros((ROWS, width), x.dtype)
    for at in pieces(x, width):
        before = before + x[:, at]
        out[:, at] = before


def read_between(x: Any, out: Any, width: int) -> None:
    """A round reads what an earlier one stored."""
    for number, at in enumerate(pieces(x, width)):
        out[:, at] = x[:, at] * 2 if number == 0 else x[:, at] * 2 + out[:, pl.ds(0, width)]


def turned(x: Any, out: Any, width: int) -> None:
    """Pieces are stored in another order."""
    for at, to in zip(pieces(x, width), reversed(pieces(x, width)), strict=True):
        out[:, to] = x[:, at] * 2


def stored_twice(x: Any, out: Any, width: int) -> None:
    for at in pieces(x, width):
        out[:, at] = x[:, at] * 2
    out[:, pl.ds(3, width)] = x[:, pl.ds(3, width)] * 5


def one_left_out(x: Any, out: Any, width: int) -> None:
    """Old contents of the first piece stay."""
    out[...] = x[...] - 1
    for at in pieces(x, width)[1:]:
        out[:, at] = x[:, at] * 2


def overlapping(x: Any, out: Any, width: int) -> None:
    total = jnp.zeros(ROWS, x.dtype)
    for at in range(0, x.shape[1] - width + 1, width // 2):
        total = total + x[:, pl.ds(at, width)].sum(axis=1)
    out[...] = x[...] + total[:, None]


def different(x: Any, out: Any, width: int) -> None:
    """Each round multiplies by another number."""
    for number, at in enumerate(pieces(x, width)):
        out[:, at] = x[:, at] * float(number)


def by_rows(x: Any, out: Any, width: int) -> None:
    for at in range(0, ROWS, 2):
        rows = pl.ds(at, 2)
        out[rows, :] = x[rows, :] - x[rows, :].max(axis=1, keepdims=True)


CASES = {
    "doubled": Case(doubled, 0),
    "doubled, bfloat16": Case(doubled, 0, dtype=jnp.bfloat16),
    "softmax": Case(softmax, 0, 2),
    "softmax, 5 rounds": Case(softmax, 0, 2, columns=80, width=16),
    "masked sums": Case(masked_sums, 0, 1),
    "integers": Case(integer_maxima, 0, 1, dtype=jnp.int32),
    "running": Case(running, None),
    "read between": Case(read_between, None),
    "other order": Case(turned, None),
    "stored twice": Case(stored_twice, 1),
    "one left out": Case(one_left_out, 1),
    "overlapping": Case(overlapping, 0, 2),
    "different numbers": Case(different, 0),
    "by rows": Case(by_rows, 0, 1),
}


def call(case: Case, steps: int) -> Callable[[jax.Array], jax.Array]:
    block = pl.BlockSpec((ROWS, case.columns), lambda i: (i, 0))
    return pl.pallas_call(
        lambda x, out: case.body(x, out, case.width),
        grid=(steps,),
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((ROWS * steps, case.columns), case.dtype),
        interpret=True,
    )


def bodies(closed: Any) -> tuple[Any, Any]:
    """The body of the only kernel without references, and with its rounds at once."""
    (equation,) = jaxprs.kernel_calls(closed)
    body, _ = compat.discharged(with_array_literals(equation.params["jaxpr"]), equation.params["grid_mapping"])
    return body, unrolled_loops.merged(body)


def both(closed: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a kernel gives as plain JAX, and in Pallas's interpreter."""
    (got,) = jax.jit(lambda x: jaxprs.run(closed, [x], "vectorized"))(x)
    (want,) = jax.jit(lambda x: jaxprs.run(closed, [x], "interpret"))(x)
    return got, want


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_rounds_at_once(name: str, steps: int) -> None:
    case = CASES[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS * steps, case.columns)) * 9, case.dtype)
    closed = jax.make_jaxpr(call(case, steps))(x)
    got, want = both(closed, x)
    np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), rtol=1e-6, atol=1e-6)
    body, merged = bodies(closed)
    if case.stores is None:
        assert merged is body
    else:
        found = collections.Counter(equation.primitive.name for equation in merged.jaxpr.eqns)
        assert found["dynamic_update_slice"] == case.stores
        assert sum(found[reduction] for reduction in rounds.REDUCTIONS) == case.reductions


@dataclasses.dataclass(frozen=True)
class Step:
    """What a round does: one operation of a value it has, and another one that it has or that the last round left."""

    operation: int
    first: int
    second: int


OPERATIONS: tuple[Callable[[Any, Any], Any], ...] = (
    jnp.add, jnp.subtract, jnp.maximum, lambda a, b: a * 0.5 + b, lambda a, b: a - b.max(axis=1, keepdims=True),
    lambda a, b: jnp.where(a > b, a, 1.0), lambda a, b: a * b.sum(axis=1, keepdims=True) * 0.1,
)  # fmt: skip

STEPS = st.lists(st.builds(Step, st.integers(0, len(OPERATIONS) - 1), st.integers(0, 9), st.integers(0, 9)), max_size=5)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(STEPS, STEPS, st.booleans(), st.sampled_from([2, 3]))
def test_random_loops(first: list[Step], second: list[Step], reads: bool, count: int) -> None:
    """Two loops in a row, whose rounds hand on what they computed last."""

    def body(x: Any, out: Any, width: int) -> None:
        left = jnp.ones((ROWS, 1))
        for steps in (first, second):
            for at in pieces(x, width):
                values = [
                    x[:, at],
                    left * jnp.ones((ROWS, width)),
                    *([out[:, at]] if reads and steps is second else []),
                ]
                for step in steps:
                    one, other = (values[which % len(values)] for which in (step.first, step.second))
                    values.append(jnp.clip(OPERATIONS[step.operation](one, other), -9, 9))
                out[:, at] = values[-1]
                left = values[-1].min(axis=1, keepdims=True) if len(steps) % 2 else left + 1

    case = Case(body, 0, columns=16 * count, width=16)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((ROWS, case.columns)), jnp.float32)
    closed = jax.make_jaxpr(call(case, 1))(x)
    got, want = both(closed, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
