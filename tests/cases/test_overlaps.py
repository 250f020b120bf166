"""Operands of one call that lie in each other's memory, of which one is written: as eager, or a coded refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

import tpu_lowering
from tests.cases.case_kernels import helion_step
from tests.cases.harness import compare
from tpu_lowering import compat, errors, kernel_op, register_kernel


@kernel_op("overlaps::two", mutates_args=("a", "b"))
def two(a: torch.Tensor, b: torch.Tensor) -> None:
    return a + 1, b * 2  # type: ignore[return-value]


@kernel_op("overlaps::several", mutates_args=("outs",))
def several(x: torch.Tensor, outs: list[torch.Tensor]) -> None:
    return [out * (at + 2) + x for at, out in enumerate(outs)]  # type: ignore[return-value]


@kernel_op("overlaps::into", mutates_args=("out",))
def into(x: torch.Tensor, out: torch.Tensor) -> None:
    return out + x * 2  # type: ignore[return-value]


@torch.library.custom_op("overlaps::foreign_two", mutates_args=("a", "b"))
def foreign_two(a: torch.Tensor, b: torch.Tensor) -> None:
    a.add_(1)
    b.mul_(2)


@torch.library.custom_op("overlaps::foreign_several", mutates_args=("outs",))
def foreign_several(x: torch.Tensor, outs: list[torch.Tensor]) -> None:
    for at, out in enumerate(outs):
        out.mul_(at + 2)
        out.add_(x)


@torch.library.custom_op("overlaps::foreign_into", mutates_args=("out",))
def foreign_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.zero_()
    out.add_(x * 2)


ops = torch.ops.overlaps
register_kernel(ops.foreign_two.default)(lambda a, b: (a + 1, b * 2))
register_kernel(ops.foreign_several.default)(lambda x, outs: [out * (at + 2) + x for at, out in enumerate(outs)])
register_kernel(ops.foreign_into.default)(lambda x, out: x * 2)
OWN = (ops.two, ops.several, ops.into)
FOREIGN = (ops.foreign_two, ops.foreign_several, ops.foreign_into)

OVERLAPPING: dict[str, Callable[..., Any]] = {
    "rows": lambda x, two, several, into: two(x[0:2], x[1:3]),
    "same": lambda x, two, several, into: two(x, x),
    "transposed": lambda x, two, several, into: two(x, x.t()),
    "column and row": lambda x, two, several, into: two(x[0], x[:, 1]),
    "strided": lambda x, two, several, into: two(x.view(-1)[::3], x.view(-1)[4:10]),
    "list of one twice": lambda x, two, several, into: several(x[2] * 1, [x[0], x[0]]),
    "list that overlaps": lambda x, two, several, into: several(x[2:4] * 1, [x[0:2], x[1:3]]),
    "list and operand": lambda x, two, several, into: several(x[0], [x[1], x[0]]),
    "operand": lambda x, two, several, into: into(x[0:2], x[1:3]),
    "operand that is the same": lambda x, two, several, into: into(x, x),
    "operand transposed": lambda x, two, several, into: into(x.t(), x),
}
APART: dict[str, Callable[..., Any]] = {
    "halves": lambda x, two, several, into: two(x[:2], x[2:]),
    "columns": lambda x, two, several, into: two(x[:, :2], x[:, 2:]),
    "even and odd": lambda x, two, several, into: two(x[::2], x[1::2]),
    "list": lambda x, two, several, into: several(x[3], [x[0], x[1], x[2]]),
    "operand": lambda x, two, several, into: into(x[1::2].t(), x[::2].t()),
}
PLACES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "argument": lambda x: x,
    "written argument": lambda x: x.add_(1),
    "value": lambda x: x * 2,
    "fill": lambda x: torch.ones(4, 4, dtype=x.dtype),
}


def program(call: Callable[..., Any], place: str, which: tuple[Any, ...]) -> Callable[[torch.Tensor], Any]:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        buffer = PLACES[place](x)
        call(buffer, *which)
        return buffer * 1, x * 1

    return function


@pytest.fixture(autouse=True)
def without_earlier_compilations() -> None:
    """All programs here are of one code object: without this Dynamo would run most of them in eager."""
    torch._dynamo.reset()


def matrix() -> torch.Tensor:
    return torch.arange(16.0).reshape(4, 4)


def run(function: Callable[..., Any], x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    return function(x), x


@pytest.mark.parametrize("place, dynamic", [("argument", True), ("written argument", False)])
@pytest.mark.parametrize(
    "call", [*OVERLAPPING.values(), *APART.values()], ids=[*OVERLAPPING, *(f"no {a}" for a in APART)]
)
def test_own_operators_equal_eager(call: Callable[..., Any], place: str, dynamic: bool) -> None:
    """A ``kernel_op`` computes all values, then writes them back in the order of its schema, in eager and compiled."""
    function = program(call, place, OWN)
    compare(run(torch.compile(function, backend="helion_tpu", dynamic=dynamic), matrix()), run(function, matrix()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", APART.values(), ids=APART)
def test_other_operators_apart_equal_eager(call: Callable[..., Any], place: str) -> None:
    function = program(call, place, FOREIGN)
    compare(run(torch.compile(function, backend="helion_tpu"), matrix()), run(function, matrix()))


@pytest.mark.parametrize("place, dynamic", [("argument", True), ("written argument", False)])
@pytest.mark.parametrize("call", OVERLAPPING.values(), ids=OVERLAPPING)
def test_other_operators_that_overlap_are_refused(call: Callable[..., Any], place: str, dynamic: bool) -> None:
    assert refusal(program(call, place, FOREIGN), matrix(), dynamic=dynamic).code == "TL214"


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> errors.TpuLoweringError:
    with pytest.raises((compat.BackendCompilerFailed, errors.TpuLoweringError)) as caught:
        torch.compile(function, backend="helion_tpu", **options)(*arguments)
    found = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(found, errors.TpuLoweringError)
    return found


def test_the_refusals_text() -> None:
    def function(x: torch.Tensor) -> None:
        ops.foreign_two(x[0:2], x[1:3])

    def expanded(x: torch.Tensor, out: torch.Tensor) -> None:
        into(x, out[0].expand(4, 4))

    line = function.__code__.co_firstlineno + 1
    assert str(refusal(function, matrix())) == (
        "[TL214] memory that a kernel writes overlaps: arguments 'a' and 'b' of overlaps::foreign_two\n"
        f"  at   test_overlaps.py:{line} in function: ops.foreign_two(x[0:2], x[1:3])\n"
        "  why  expected memory of its own for 'a', which is written, got elements that both have: what eager makes of "
        "them depends on the order in which the operator's own code touches them\n"
        "  fix  pass a .clone() of one of them, and copy it back after the call if it is written"
    )
    line = expanded.__code__.co_firstlineno + 1
    assert str(refusal(expanded, matrix(), matrix())) == (
        "[TL214] memory that a kernel writes overlaps: argument 'out' of overlaps::into\n"
        f"  at   test_overlaps.py:{line} in expanded: into(x, out[0].expand(4, 4))\n"
        "  why  expected one place in memory for each element that is written, got an expanded tensor, whose elements "
        "share places\n"
        "  fix  write to a .clone() of it"
    )
    with pytest.raises(RuntimeError, match="more than one element"):
        expanded(matrix(), matrix())


def test_the_callers_views_overlap() -> None:
    """Two arguments of the compiled function that are views of one memory."""
    for which, same in ((OWN, True), (FOREIGN, False)):

        def function(a: torch.Tensor, b: torch.Tensor, two: Any = which[0]) -> torch.Tensor:
            two(a, b)
            return a + b

        if same:
            memory, wanted = matrix(), matrix()
            results = torch.compile(function, backend="helion_tpu")(memory[:2], memory[1:3])
            compare((results, memory), (function(wanted[:2], wanted[1:3]), wanted))
        else:
            assert refusal(function, *views_that_overlap()).code == "TL214"


def test_a_helion_kernel_that_writes_two() -> None:
    """What overlaps is refused, what lies apart is not."""

    def overlapping(buffer: torch.Tensor, x: torch.Tensor) -> None:
        helion_step(buffer[:8], x, buffer[4:])

    def apart(buffer: torch.Tensor, x: torch.Tensor) -> None:
        helion_step(buffer[:8], x, buffer[8:])

    buffer, x = torch.randn(16, 16), torch.randn(8, 16)
    assert refusal(overlapping, buffer[:12].clone(), x).code == "TL214"
    torch.compile(apart, backend="helion_tpu")(buffer, x)


def views_that_overlap() -> tuple[torch.Tensor, torch.Tensor]:
    memory = matrix()
    return memory[:2], memory[1:3]


def test_equal_values_with_memory_of_their_own() -> None:
    """Where gradients are recorded equal values become one node; they are not one memory."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        a, b = torch.zeros(4, 4), torch.zeros(4, 4)
        ops.foreign_into(a, b)
        ops.foreign_into(x.detach() * 2, a)
        return (w * (a + b)).sum()

    def weights() -> torch.Tensor:
        return torch.ones(4, 4, requires_grad=True)

    compiled = torch.compile(function, backend="helion_tpu", fullgraph=True)
    mine, eager = weights(), weights()
    compare(compiled(matrix(), mine), function(matrix(), eager))


@pytest.mark.parametrize("call", OVERLAPPING.values(), ids=OVERLAPPING)
@pytest.mark.parametrize("which", [OWN, FOREIGN], ids=["own", "other"])
@pytest.mark.parametrize("place", ["argument", "fill"])
def test_passes_for_other_backends_change_nothing(call: Callable[..., Any], which: Any, place: str) -> None:
    """``passes.apply`` on the graph of another backend gives what that backend gives without it."""
    results: list[Any] = []
    for rewrite in (False, True):

        def compile_graph(graph: torch.fx.GraphModule, _: Any, rewrite: bool = rewrite) -> Any:
            if rewrite:
                tpu_lowering.passes.apply(graph)
            return graph

        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=compile_graph, keep_inference_input_mutations=True)
        function = torch.compile(program(call, place, which), backend=backend)
        results.append(run(function, matrix()))
    compare(results[1], results[0])


def test_random_views() -> None:
    """Forty calls of random views of one buffer: eager's result, or a refusal if and only if they overlap."""
    rng = random.Random(0)

    def cut() -> tuple[slice, slice]:
        rows, columns = rng.randint(0, 2), rng.randint(0, 2)
        return slice(rows, rows + 2 * rng.choice([1, 2]), 2), slice(columns, columns + 2 * rng.choice([1, 2]), 2)

    refused = 0
    for _ in range(40):
        torch._dynamo.reset()
        first, second = cut(), cut()
        places = torch.arange(36).reshape(6, 6)
        overlap = bool(set(places[first].flatten().tolist()) & set(places[second].flatten().tolist()))

        def function(x: torch.Tensor, op: Any, first: Any = first, second: Any = second) -> None:
            op(x[first], x[second])

        start = torch.arange(36.0).reshape(6, 6)
        mine, eager = start.clone(), start.clone()
        torch.compile(function, backend="helion_tpu")(mine, two)
        function(eager, two)
        assert torch.equal(mine, eager)
        if overlap:
            refused += 1
            assert refusal(function, start.clone(), ops.foreign_two).code == "TL214"
    assert 5 < refused < 35
