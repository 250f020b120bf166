"""Random programs of views give eager's results in eager's memory: values, layouts, sharing, updates, gradients.

Each program is compiled once, for dynamic sizes, and called with several sizes and places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.property.memory_programs import Instruction, inputs, relations, run
from tests.subset import GRAPHS

PROGRAMS = max(1, GRAPHS // 50)
SHARDS = 2
CALLS = ((5, 1), (7, 2), (6, 3))  # rows, and a place
small = st.integers(0, 47)
programs = st.lists(st.tuples(st.integers(0, 9), small, small, st.integers(0, 3)), min_size=1, max_size=7)
Function = Callable[[Sequence[torch.Tensor], int], list[Any]]


def outcome(function: Function, rows: int, place: int, gradient: bool) -> tuple[list[Any], list[Any]]:
    """What a call leaves: layouts and sharing; then values, also after every result was written to, and gradients."""
    leaves, given_ = inputs(rows, gradient)
    with torch.set_grad_enabled(gradient):
        results = function(given_, place)
    found = relations([*given_, *results])
    values = [tensor.detach().clone() for tensor in (*given_, *results)]
    with torch.no_grad():
        for number, result in enumerate(results):
            result.add_(number + 1)
    values += [tensor.detach().clone() for tensor in (*given_, *results)]
    if gradient:
        leaves, given_ = inputs(rows, gradient)
        results = function(given_, place)
        losses = [(t * t.detach().cos()).sum() for t in (*given_, *results) if t.requires_grad]
        sum(losses, torch.zeros(())).backward()
        values += [leaf.grad for leaf in leaves]
    return found, values


def check(program: Sequence[Instruction], gradient: bool) -> None:
    """Compares a program with eager, if eager can run it."""
    try:
        expected = [outcome(lambda given_, k: run(program, given_, k), *call, gradient) for call in CALLS]
    except RuntimeError:
        return  # an update in place of overlapping elements, or of what a gradient needs
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda given_, k: run(program, given_, k), backend="helion_tpu", fullgraph=True, dynamic=True
    )
    for call, (relations_, values) in zip(CALLS, expected, strict=True):
        found, actual = outcome(compiled, *call, gradient)
        assert found == relations_
        torch.testing.assert_close(actual, values, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_results_lie_where_eager_has_them(shard: int, gradient: bool) -> None:
    """``TPU_LOWERING_GRAPHS`` / 50 random programs, over all."""

    @seed(shard)
    @settings(
        max_examples=max(1, PROGRAMS // SHARDS // 2),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(programs)
    def holds(program: list[Instruction]) -> None:
        check(program, gradient)

    holds()


REGRESSIONS: dict[str, list[Instruction]] = {
    "a piece of an argument": [(3, 2, 19, 1)],
    "part of an argument that was multiplied by a number of the caller's": [(7, 0, 0, 1), (4, 0, 16, 0)],
    "part of an argument in steps that was written to": [(7, 2, 5, 0), (0, 2, 0, 2)],
    "pieces of an argument that was written to": [(7, 0, 8, 0), (3, 0, 36, 1), (0, 0, 0, 0)],
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("program", REGRESSIONS.values(), ids=REGRESSIONS)
def test_programs_that_once_failed(program: list[Instruction], gradient: bool) -> None:
    check(program, gradient)
