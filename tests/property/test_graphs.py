"""Random programs give the same results through the passes, and through the whole backend, as in eager."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.property.programs import Instruction, inputs, poisoned, run
from tests.subset import GRAPHS
from tpu_lowering import compat, pipeline
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir import interpreter
from tpu_lowering.observers import Observers
from tpu_lowering.options import Options
from tpu_lowering.stages import Request

COMPILED = min(2000, GRAPHS // 10)
SHARDS = 4
small = st.integers(0, 11)
instructions = st.tuples(small, small, small, small)
programs = st.lists(instructions, min_size=2, max_size=14)


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(a, e, equal_nan=True, msg=lambda text, index=index: f"value {index}: {text}")


def through_the_passes(program: list[Instruction]) -> list[torch.Tensor]:
    """The program, captured and taken through all of the pipeline, on the reference interpreter."""

    def traced(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        owned = [tensor.clone() for tensor in tensors]
        results = [*run(program, owned, torch.empty), *owned]
        return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in results)

    with torch.no_grad():
        module = compat.aot_export_joint_simple(traced, tuple(inputs()), trace_joint=False)
    lowered = pipeline.lowered(Request("random", module, inputs(), Options(), Observers([])))
    return interpreter.interpret(lowered.module, inputs())


def through_the_backend(program: list[Instruction]) -> list[torch.Tensor]:
    """The program compiled, every pass verified, undefined memory poisoned: results, then the inputs."""
    torch._dynamo.reset()
    backend = functools.partial(helion_tpu, options={"verify": True, "poison": True})
    tensors = inputs()
    with torch.no_grad():
        results = torch.compile(
            lambda *given_: [tensor.clone() for tensor in run(program, given_, torch.empty)],
            backend=backend,
            fullgraph=True,
            dynamic=False,
        )(*tensors)
    return [*results, *tensors]


def in_eager(program: list[Instruction]) -> list[torch.Tensor]:
    """The oracle: results, then what became of the inputs."""
    tensors = inputs()
    return [tensor.clone() for tensor in run(program, tensors, poisoned)] + tensors


@pytest.mark.parametrize("shard", range(SHARDS))
def test_passes_keep_results(shard: int) -> None:
    """``TPU_LOWERING_GRAPHS`` random graphs through the passes, on the reference interpreter."""

    @seed(shard)
    @settings(
        max_examples=GRAPHS // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(programs)
    def check(program: list[Instruction]) -> None:
        expected = in_eager(program)
        assert_same(through_the_passes(program), expected)

    check()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_backend_keeps_results(shard: int) -> None:
    """``COMPILED`` random programs through the whole backend with ``verify``, mutated inputs included."""

    @seed(shard)
    @settings(
        max_examples=COMPILED // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(programs.filter(lambda program: len(program) <= 9))
    def check(program: list[Instruction]) -> None:
        assert_same(through_the_backend(program), in_eager(program))

    check()


REGRESSIONS: dict[str, list[Instruction]] = {
    "a fill of an input, then of its first row": [(4, 0, 0, 0), (4, 0, 4, 0)],
}


@pytest.mark.parametrize("program", REGRESSIONS.values(), ids=REGRESSIONS)
def test_programs_that_once_failed(program: list[Instruction]) -> None:
    """Shrunk programs that the random tests found, whatever stage they failed in."""
    expected = in_eager(program)
    assert_same(through_the_passes(program), expected)
    assert_same(through_the_backend(program), expected)
