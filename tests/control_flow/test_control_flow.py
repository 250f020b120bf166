"""Control flow: ``cond``, ``while_loop``, ``scan``, ``map``, forward and backward, each inside one program."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import helion.language as hl
import jax
import jax.numpy as jnp
import pytest
import torch
from jax.experimental import pallas as pl
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops.map import map as map_rows

from tests.cases.case_kernels import pallas_kernel
from tests.cases.harness import Record, check, compare, compiled, refusal
from tests.control_flow.training import check_gradients
from tpu_lowering import explain, kernel_op

Tensor = torch.Tensor
Tensors = tuple[Tensor, ...]


def yes(p: bool) -> Tensor:
    return torch.tensor(p)


# cond -------------------------------------------------------------------------------------------------
def branches(p: Tensor, x: Tensor) -> Tensor:
    return torch.cond(p, lambda x: x.sin() * 2, lambda x: x.cos(), (x,))


def branches_of_several(p: Tensor, x: Tensor, y: Tensor) -> Tensors:
    """Several operands, one of them unused in each branch; results of other shapes and types."""

    def sums(x: Tensor, y: Tensor) -> Tensors:
        return x.sum(0), (x > 0).sum(), x * 1

    def products(x: Tensor, y: Tensor) -> Tensors:
        return y.prod(0), (y > 0).sum(), y * 1

    return torch.cond(p, sums, products, (x, y))


def branches_with_numbers_and_constants(p: Tensor, x: Tensor) -> tuple[Tensor, int]:
    shared = torch.tensor([1.0, 2.0, 3.0])
    first, number = torch.cond(
        p, lambda x: (x + torch.tensor([4.0, 5.0, 6.0]) + shared, 3), lambda x: (x - shared, 3), (x,)
    )
    return first * shared, number


def nested_branches(p: Tensor, x: Tensor) -> Tensor:
    def outer(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - torch.tensor(2.0), (x,))

    return torch.cond(p, outer, lambda x: x * torch.tensor(3.0), (x * 2,)) + 1


def branch_that_writes_its_own_values(p: Tensor, x: Tensor) -> Tensor:
    def writes(x: Tensor) -> Tensor:
        y = x.clone()
        y[0].add_(1)
        return y

    return torch.cond(p, writes, lambda x: x * 1, (x,))


CONDITIONS = (
    branches,
    branches_of_several,
    branches_with_numbers_and_constants,
    nested_branches,
    branch_that_writes_its_own_values,
)


@pytest.mark.parametrize("function", CONDITIONS, ids=lambda f: f.__name__)
def test_cond(function: Callable[..., Any]) -> None:
    """One program serves both values of the predicate."""
    record = Record()
    run = compiled(function, record)
    for p in (True, False, True):
        x, y = torch.randn(4, 3), torch.randn(4, 3)
        given = (yes(p), x, y) if function is branches_of_several else (yes(p), x)
        compare(run(*given), function(*given))
    assert len(record.graphs) == 1 and "control_flow.cond" in record.source


@pytest.mark.parametrize("p", [True, False])
@pytest.mark.parametrize("function", [nested_branches, branch_that_writes_its_own_values], ids=lambda f: f.__name__)
def test_cond_gradients(function: Callable[..., Any], p: bool) -> None:
    check_gradients(function, yes(p), torch.randn(4, 3))


def test_only_the_chosen_branch_runs() -> None:
    """``lax.cond``, not a select: the branch with the endless loop is there, and is not entered."""

    def endless(x: Tensor) -> Tensor:
        return while_loop(lambda x: x.sum() == x.sum(), lambda x: (x + 0,), (x,))[0]

    def function(p: Tensor, x: Tensor) -> Tensor:
        return torch.cond(p, endless, lambda x: x * 2, (x,))

    x = torch.randn(3)
    compare(compiled(function, Record(), verify=False)(yes(False), x), x * 2)


def test_cond_at_symbolic_sizes() -> None:
    """The sub-graphs' symbols are those of the graph around them."""

    def function(p: Tensor, x: Tensor) -> Tensor:
        return torch.cond(p, lambda x: x + torch.arange(x.shape[0]), lambda x: x * x.shape[0], (x,)).sum()

    run = compiled(function, Record(), dynamic=True)
    for size in (3, 5, 4, 3):
        for p in (True, False):
            x = torch.randn(size)
            compare(run(yes(p), x), function(yes(p), x))


def test_condition_from_sizes_is_decided_when_compiled() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cond(x.shape[0] > 4, lambda x: x + 1, lambda x: x - 1, (x,))

    run = compiled(function, Record(), dynamic=True)
    for size in (3, 5, 4):
        x = torch.randn(size)
        compare(run(x), function(x))


MUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "an operand": lambda x: x.add_(1).sin(),
    "a view of an operand": lambda x: x[0].add_(1).sin(),
}


@pytest.mark.parametrize("branch", MUTATIONS.values(), ids=MUTATIONS)
def test_mutation_of_an_operand_is_refused_by_dynamo(branch: Callable[[Tensor], Tensor]) -> None:
    """Torch's own refusal, before any backend; nothing is written."""

    def function(p: Tensor, x: Tensor) -> Tensor:
        return torch.cond(p, branch, lambda x: x.cos()[: branch(x.clone()).shape[0]], (x,))

    x = torch.ones(3, 3)
    with pytest.raises(torch._dynamo.exc.UncapturedHigherOrderOpError, match="do not support input mutation"):
        compiled(function, Record())(yes(True), x)
    assert torch.equal(x, torch.ones(3, 3))


def test_result_that_is_an_operand_is_refused_by_dynamo() -> None:
    with pytest.raises(torch._dynamo.exc.UncapturedHigherOrderOpError, match="do not support aliasing"):
        compiled(lambda p, x: torch.cond(p, lambda x: x, lambda x: x * 2, (x,)), Record())(yes(True), torch.ones(2))


# while_loop -------------------------------------------------------------------------------------------
def counted(x: Tensor, n: Tensor) -> Tensors:
    return while_loop(lambda i, x, n: i < n, lambda i, x, n: (i + 1, x * 2 + 1, n.clone()), (torch.tensor(0), x, n))


def with_a_free_tensor(x: Tensor, n: Tensor) -> Tensors:
    weight = n * torch.ones(3)
    return while_loop(lambda x: x.sum() < 100, lambda x: (x.abs() + weight,), (x,))


@pytest.mark.parametrize("function", [counted, with_a_free_tensor], ids=lambda f: f.__name__)
def test_while_loop(function: Callable[..., Any]) -> None:
    """One program for any number of steps."""
    record = Record()
    run = compiled(function, record)
    for steps in (3, 1, 5, *([0] if function is counted else [])):
        x, n = torch.randn(3), torch.tensor(steps)
        compare(run(x, n), function(x, n))
    assert len(record.graphs) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.float64, torch.bool, torch.complex64], ids=str)
def test_while_loop_carries_every_type(dtype: torch.dtype) -> None:
    def function(x: Tensor) -> Tensors:
        return while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, (x.logical_not() if x.dtype == torch.bool else x * 3 + 1)),
            (torch.tensor(0), x),
        )  # fmt: skip

    check(function, lambda: (torch.ones(3).to(dtype),))


def test_loop_inside_a_branch_inside_a_loop() -> None:
    def inner(x: Tensor) -> Tensor:
        return while_loop(lambda x: x.sum() < 10, lambda x: (x + 1,), (x,))[0]

    def body(i: Tensor, x: Tensor) -> Tensors:
        return i + 1, torch.cond(x.sum() < 5, inner, lambda x: x - 7, (x,))

    def function(x: Tensor) -> Tensors:
        return while_loop(lambda i, x: i < 4, body, (torch.tensor(0), x))

    check(function, lambda: (torch.rand(3),))


def test_loops_whose_length_depends_on_data_are_refused() -> None:
    text = refusal(
        lambda x: while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (0, x)), lambda: (torch.ones(2),)
    )
    assert text.code == "TL303" and text.subject == "while_loop"
    assert text.remedy == "let the loop carry a tensor, such as torch.tensor(0), in place of a Python integer"
    text = refusal(counted, lambda: (torch.ones(2, requires_grad=True), torch.tensor(2)))
    assert text.code == "TL303" and text.subject == "while_loop_stack_output"
    assert text.remedy == (
        "the gradient needs every step's values, and the number of steps depends on values: use scan, which takes a "
        "fixed number of steps, or run the loop under torch.no_grad()"
    )
    with torch.no_grad():
        x, n = torch.ones(2, requires_grad=True), torch.tensor(2)
        compare(compiled(counted, Record())(x, n), counted(x, n))


# scan, map, associative_scan --------------------------------------------------------------------------
def running(x: Tensor) -> tuple[Tensor, Tensor]:
    return scan(lambda total, row: (total + row, (total * row).sin()), torch.zeros(3), x, dim=0)


def running_backwards(x: Tensor) -> tuple[Tensor, Tensor]:
    return scan(lambda total, row: (total + row, total * row), torch.ones(4), x, dim=1, reverse=True)


def recurrent(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A cell: states in a tuple, a weight from outside."""

    def cell(state: Tensors, row: Tensor) -> tuple[Tensors, Tensor]:
        hidden, count = state
        new = torch.tanh(row @ weight + hidden)
        return (new, count + 1), new * 2

    (hidden, _), rows = scan(cell, (torch.zeros(3), torch.zeros(())), x, dim=0)
    return hidden, rows


def rows_of_two(x: Tensor, y: Tensor) -> Tensor:
    return map_rows(lambda row, y: row.sin() @ y, x, y)


def several_results(x: Tensor) -> Tensors:
    return map_rows(lambda row: (row.sum(), row * 2), x)


SCANS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "scan": (running, ((4, 3),)),
    "scan of one row": (running, ((1, 3),)),
    "scan of the second dimension, backwards": (running_backwards, ((4, 3),)),
    "scan with a weight": (recurrent, ((4, 3), (3, 3))),
    "map": (rows_of_two, ((4, 3), (3, 2))),
    "map with several results": (several_results, ((4, 3),)),
    "associative_scan": (
        lambda x: associative_scan(lambda a, b: a * b, x, dim=0, combine_mode="generic"), ((5, 3),),
    ),
    "associative_scan, backwards": (
        lambda x: associative_scan(lambda a, b: a * 2 + b, x, dim=1, reverse=True, combine_mode="generic"), ((2, 6),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("function, shapes", SCANS.values(), ids=SCANS)
def test_scan_and_map(function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]) -> None:
    record = check(function, lambda: [torch.randn(shape) for shape in shapes])
    assert len(record.graphs) == 1
    check_gradients(function, *[torch.randn(shape) for shape in shapes])


def test_scan_at_symbolic_sizes() -> None:
    run = compiled(running, Record(), dynamic=True)
    for size in (3, 5, 4):
        x = torch.randn(size, 3)
        compare(run(x), running(x))


# Kernels inside regions -------------------------------------------------------------------------------
@kernel_op("control_flow::scale_into", mutates_args=("out",))
def scale_into(x: Tensor, out: Tensor) -> None:
    def body(x_ref: Any, _: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] * 3

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype), input_output_aliases={1: 0})(
        x, out
    )


@kernel_op("control_flow::accumulate_into", mutates_args=("out",))
def accumulate_into(x: Tensor, out: Tensor) -> None:
    return out + x


@kernel_op(
    "control_flow::sine",
    backward=lambda ctx, gradient: gradient * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)
def sine(x: Tensor) -> Tensor:
    return jnp.sin(x)


@pallas_kernel(autotune_effort="none")
def helion_scale_into(x: Tensor, out: Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] * 3


def kernels_in_branches(p: Tensor, x: Tensor) -> Tensor:
    def writes(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        scale_into(x, out)
        return out

    def accumulates(x: Tensor) -> Tensor:
        out = torch.ones_like(x)
        accumulate_into(x, out)
        return out

    return torch.cond(p, writes, accumulates, (x,))


@pytest.mark.parametrize("p", [True, False])
def test_kernels_in_branches(p: bool) -> None:
    """Passes see them: the buffer that is overwritten is fresh, the one that is read stays."""
    plain = {"poison": False}
    record = check(kernels_in_branches, lambda: (yes(p), torch.randn(4, 3)), kept=("TL501",), options=plain)
    assert "control_flow_scale_into(arg0_1_1, None)" in record.source
    report = explain(kernels_in_branches, yes(p), torch.randn(4, 3))
    assert (report.kernel_calls, report.allocations_removed, report.programs_after) == (2, 1, 1)


def test_helion_kernel_in_a_loop() -> None:
    def body(i: Tensor, x: Tensor) -> Tensors:
        out = torch.empty_like(x)
        helion_scale_into(x, out)
        return i + 1, out

    def function(x: Tensor) -> Tensors:
        return while_loop(lambda i, x: i < 2, body, (torch.tensor(0), x))

    record = check(
        function, lambda: (torch.randn(4, 3),), model=lambda x: (torch.tensor(2), x * 9), options={"poison": False}
    )
    assert ", None)" in record.source and "empty" not in record.source


def test_gradient_of_a_kernel_in_a_branch() -> None:
    check_gradients(lambda p, x: torch.cond(p, lambda x: sine(x) * 2, lambda x: x * 3, (x,)), yes(True), torch.randn(3))


def test_kernel_without_backward_in_a_branch_is_refused() -> None:
    assert refusal(kernels_in_branches, lambda: (yes(True), torch.randn(4, 3, requires_grad=True))).code == "TL205"


# What is written --------------------------------------------------------------------------------------
def test_generated_source_is_readable() -> None:
    record = check(branches, lambda: (yes(True), torch.randn(4, 3)))
    _, _, text = record.source.partition("\n\n\n")
    assert "\n".join(
        line.replace(line.strip(), "...") if "named_scope" in line else line for line in text.split("\n")
    ) == (
        """\
def inference_0(arg0_1, arg1_1):
    ...
        def true_graph_0(arg0_1_1):
            ...
                sin = aten.sin(arg0_1_1, out=f32[4, 3])
                mul = aten.mul(sin, 2, out=f32[4, 3])
            return (mul,)

        def false_graph_0(arg0_1_2):
            ...
                cos = aten.cos(arg0_1_2, out=f32[4, 3])
            return (cos,)

        (getitem,) = control_flow.cond(arg0_1, true_graph_0, false_graph_0, (arg1_1,), out=(f32[4, 3],))
    return (getitem,)
""".replace("inference_0", text.split("(")[0].removeprefix("def "))
    )


def test_dumped_program_runs_on_its_own(tmp_path: pathlib.Path) -> None:
    torch._dynamo.reset()
    run = torch.compile(nested_branches, backend="helion_tpu", options={"dump": str(tmp_path)})
    run(yes(True), torch.randn(4, 3))
    (path,) = tmp_path.rglob("inference_*.py")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == "['float32[4,3]']", done.stderr
    graph = next(path.parent.glob("*_lower.graph")).read_text()
    assert "\nregion true_graph_0:\n    %" in graph and "\n    region true_graph_0:\n        %" in graph
