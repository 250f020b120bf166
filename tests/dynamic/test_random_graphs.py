"""Random graphs over a tensor of three dynamic sizes, padded with NaN: every result is as in eager.

The graphs go through the analysis, the edits and the passes, and run on the reference interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, seed, settings
from torch.fx.experimental.proxy_tensor import make_fx

from tests.subset import GRAPHS
from tpu_lowering import pipeline
from tpu_lowering.capture.rounding import Rounding
from tpu_lowering.ir import interpreter
from tpu_lowering.ir.programs import Program
from tpu_lowering.normalise import specialise
from tpu_lowering.normalise.decompositions import decompositions
from tpu_lowering.observers import Observers
from tpu_lowering.options import Options
from tpu_lowering.runtime import calling_convention
from tpu_lowering.stages import Request

PROGRAMS = GRAPHS // 10
Tensor = torch.Tensor
Step = tuple[int, int, int]


def at(x: Tensor, place: int) -> int:
    """A dimension of a tensor."""
    return place % x.dim()


def alike(x: Tensor, y: Tensor) -> Tensor:
    """``y`` if it can be combined with ``x`` element by element, else ``x``."""
    fits = x.dim() == y.dim() and all(a == b or b == 1 for a, b in zip(x.shape, y.shape, strict=True))
    return y if fits else x


STEPS: tuple[Callable[[Tensor, Tensor, int], Tensor], ...] = (
    lambda x, y, n: x.sin() + n,
    lambda x, y, n: x * x.shape[at(x, n)] / 8,
    lambda x, y, n: x - alike(x, y),
    lambda x, y, n: torch.where(alike(x, y) > 0, x, 0.5),
    lambda x, y, n: x.sum(at(x, n), keepdim=True),
    lambda x, y, n: x.mean(at(x, n), keepdim=True),
    lambda x, y, n: x.amax(at(x, n), keepdim=True),
    lambda x, y, n: x.amin(at(x, n)) if x.dim() > 1 else x,
    lambda x, y, n: x.argmax(at(x, n), keepdim=True) / 8,
    lambda x, y, n: x.softmax(at(x, n)),
    lambda x, y, n: x.cumsum(at(x, n)) / 8,
    lambda x, y, n: x.transpose(0, at(x, n)),
    lambda x, y, n: x.reshape(-1),
    lambda x, y, n: x.flatten(0, 1) if x.dim() > 1 else x.unsqueeze(n % 2),
    lambda x, y, n: x.select(at(x, n), -1) if x.dim() > 1 else x,
    lambda x, y, n: x.narrow(at(x, n), 0, 1),
    lambda x, y, n: torch.cat([x.narrow(at(x, n), 0, 1), x], at(x, n)),
    lambda x, y, n: torch.cat([x, x.narrow(at(x, n), 0, 1)], at(x, n)),
    lambda x, y, n: x.flip(at(x, n)),
    lambda x, y, n: torch.nn.functional.pad(x, (n % 2, 1), value=2.0),
    lambda x, y, n: x.index_select(at(x, n), torch.zeros(2, dtype=torch.int64)),
    lambda x, y, n: x @ x.transpose(-1, -2) / 8 if x.dim() > 1 else x * x.dot(x) / 8,
    lambda x, y, n: x.transpose(-1, -2) @ alike(x, y) / 8 if x.dim() > 1 and alike(x, y).shape == x.shape else x,
    lambda x, y, n: torch.arange(x.shape[at(x, n)]) + x.sum() / 8,
    lambda x, y, n: x.new_ones(x.shape) + x.sum(0),
    lambda x, y, n: x.unsqueeze(0).expand(2, *x.shape),
    lambda x, y, n: x.tril(n - 1) if x.dim() > 1 else x,
)


def run(steps: Sequence[Step], x: Tensor) -> list[Tensor]:
    """Executes a random program; its results are all that it computed."""
    pool = [x]
    for kind, first, number in steps:
        source, other = pool[first % len(pool)], pool[-1]
        found = STEPS[kind % len(STEPS)](source, other, number)
        pool.append(found if found.dim() <= 4 and found.dim() > 0 else source + 1)
    return [value.clone() for value in pool[1:]]


class Interpreted:
    """A program on the reference interpreter."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        values = interpreter.interpret(self.program.module, arguments)
        return calling_convention.results(
            self.program.signature, arguments, [value.contiguous().clone() for value in values]
        )


def rounded(rounding: Rounding, module: torch.fx.GraphModule, x: Tensor) -> list[Tensor]:
    """The program's results for rounded sizes, with NaN as padding."""
    true = specialise.sizes_of(module.graph, [x])
    sizes = rounding.round(true)
    given_ = rounding.arguments(true, sizes, [x])
    program = pipeline.lowered(Request("r", module, given_, Options(), Observers([]), padding=rounding.padding))
    return rounding.call(Interpreted(program), program, (true, sizes), [x], True)([x])


def test_random_graphs_keep_their_results() -> None:
    number = st.integers(0, 60)
    counts = {"rounded": 0, "all": 0}

    @seed(0)
    @settings(max_examples=PROGRAMS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(number, number, st.integers(0, 3)), min_size=1, max_size=6))
    def check(steps: list[Step]) -> None:
        generator = torch.Generator().manual_seed(0)
        function = functools.partial(run, steps)
        module = make_fx(function, decomposition_table=decompositions(), tracing_mode="symbolic")(
            torch.randn(2, 23, 3, generator=generator)
        )
        rounding = Rounding(module.graph, 8)
        counts["all"] += 1
        counts["rounded"] += len(rounding.padding.rounded)
        for length in (23, 9):
            x = torch.randn(2, length, 3, generator=generator)
            actual, expected = rounded(rounding, module, x), function(x)
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4, equal_nan=True)

    check()
    assert counts["rounded"] > counts["all"]  # of three sizes each
