"""The shared and partial cases, B1 to B13: buffers of several writers, and writes that leave something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._functorch.compile_utils import fx_graph_cse

from tests.cases.case_kernels import (
    ROWS,
    accumulate,
    add_columns,
    add_into,
    column_max_into,
    double_into,
    exp_and_neg_into,
    exp_first_half,
    exp_into,
    helion_accumulate,
    helion_add_columns,
    helion_add_into,
    helion_column_max_into,
    helion_exp_first_half,
    helion_exp_into,
    helion_write_then_read_into,
    running_column_max,
    write_pages,
    write_then_read_into,
)
from tests.cases.harness import Graph, Record, capture, check, compare
from tpu_lowering import pipeline
from tpu_lowering.codegen import source
from tpu_lowering.ir import operators
from tpu_lowering.options import Options
from tpu_lowering.runtime.cpu import CpuRuntime
from tpu_lowering.stages import Request


def matrix() -> tuple[torch.Tensor]:
    return (torch.randn(8, 16),)


def two_matrices() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 16), torch.randn(8, 16)


# B1 ---------------------------------------------------------------------------------------------------
def merged(module: fx.GraphModule) -> fx.GraphModule:
    """A graph in which equal nodes, equal allocations among them, are one.

    Torch's elimination of common subexpressions merges allocations up to torch 2.13, and leaves them from 2.14 on.
    """
    result = fx.GraphModule(module, fx_graph_cse(module.graph))
    first: dict[str, fx.Node] = {}
    for node in [*filter(operators.is_allocation, result.graph.nodes)]:
        same = first.setdefault(repr((node.target, node.args, node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            result.graph.erase_node(node)
    assert sum(map(operators.is_allocation, result.graph.nodes)) == 1
    result.recompile()
    return result


def unmerged(module: fx.GraphModule) -> fx.GraphModule:
    """The graph as AOTAutograd hands it over."""
    assert sum(map(operators.is_allocation, module.graph.nodes)) == 2
    return module


def run_pipeline(module: fx.GraphModule, arguments: list[torch.Tensor], poison: bool) -> tuple[Graph, list[Any]]:
    """Takes a captured graph through the pipeline; what was observed, and its results."""
    record = Record()
    program = pipeline.lowered(Request("inference_0", module, arguments, Options(verify=True, poison=poison), record))
    return record.only, CpuRuntime().compile(program, source.generate(program, poison))(list(arguments))


def two_calls(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.empty_like(x), torch.empty_like(x)
    exp_into(x, a)
    exp_into(y, b)
    return a, b


def two_outs_of_one_call(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = torch.empty_like(x), torch.empty_like(x)
    exp_and_neg_into(x + y, k, v)
    return k, v


def one_written_and_one_accumulated(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.empty_like(x), torch.empty_like(x)
    exp_into(x, a)
    double_into(y, b)
    accumulate(a, b)
    return a, b


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("function", [two_calls, two_outs_of_one_call, one_written_and_one_accumulated])
@pytest.mark.parametrize("form", [merged, unmerged])
def test_b1_merged_allocations_stay_apart(form: Callable[..., Any], function: Callable[..., Any], poison: bool) -> None:
    """Two equal ``empty_like``, as they are or merged into one node: the base of two calls, twice the base of one call,
    or the base of a call and of another whose result is accumulated into. Each call gets its own fresh buffer."""
    x, y = torch.randn(8, 16), torch.randn(8, 16)
    graph, results = run_pipeline(form(capture(function, x, y)), [x, y], poison)
    compare(tuple(results), function(x, y))
    assert graph.at("lower").allocations == 0
    assert [name for name in graph.at("lower").aliased if not name.startswith("accumulate")] == []
    assert len(graph.at("lower").fresh) == 2


def test_b1_merged_allocation_is_one_node_with_two_bases() -> None:
    """What makes the case: one call names the same node as both of its bases."""
    graph = merged(capture(two_outs_of_one_call, *two_matrices()))
    (call,) = [node for node in graph.graph.nodes if "auto_functionalized" in str(node.target)]
    first, second = call.kwargs["_all_bases"]
    assert first is second


# B2 ---------------------------------------------------------------------------------------------------
def test_b2_two_kernels_fill_the_halves_of_an_allocation() -> None:
    """Two kernels write through slices; the result is their concatenation, no uninitialised buffer is left."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(16, 16)
        exp_into(x, out[:8])
        exp_into(y, out[8:])
        return out

    record = check(function, two_matrices, fresh=("exp_into.out",) * 2, aliased=(), allocations=0, kept=(), programs=1)
    assert "aten.cat.default([%" in record.after.text and "write_box" not in record.after.text
    assert [action.kind for action in record.actions] == ["fresh", "fresh", "moved", "removed"]


def test_b2_halves_of_columns_filled_in_reverse_order() -> None:
    """The halves are columns, which are not contiguous, and the last half is written first."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(8, 32)
        exp_into(y, out[:, 16:])
        exp_into(x, out[:, :16])
        return out

    record = check(function, two_matrices, fresh=("exp_into.out",) * 2, aliased=(), allocations=0, kept=())
    assert "aten.cat.default([%" in record.after.text


def test_b2_views_of_flat_memory() -> None:
    """The memory is one row of elements; the kernels write views that reshape its parts."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(256)
        exp_into(x, out.view(2, 8, 16)[0])
        exp_into(y, out[128:].view(8, 16))
        return out

    record = check(function, two_matrices, fresh=("exp_into.out",) * 2, aliased=(), allocations=0, kept=())
    assert "aten.cat.default([%" in record.after.text and "as_strided" not in record.after.text


def test_b2_heads_of_one_projection() -> None:
    """Keys and values interleaved in memory, [rows, 2, width] seen as [rows, 2 * width]."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(8, 32)
        heads = out.view(8, 2, 16)
        exp_and_neg_into(x, heads[:, 0], heads[:, 1])
        return out

    fresh = ("exp_and_neg_into.k", "exp_and_neg_into.v")
    check(function, matrix, fresh=fresh, aliased=(), allocations=0, kept=(), programs=1)


def test_b2_halves_filled_by_helion_kernels() -> None:
    """The same with Helion kernels."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(16, 16)
        helion_exp_into(x, out[:8])
        helion_exp_into(y, out[8:])
        return out

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.exp(), y.exp()])

    record = check(function, two_matrices, model=model, aliased=(), allocations=0, kept=(), programs=1)
    assert "aten.cat.default([%" in record.after.text


def test_b2_three_quarters_filled() -> None:
    """A quarter is written by nobody: one allocation stays, and no kernel is given it."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(16, 16)
        exp_into(x, out[:8])
        exp_into(x[:4], out[8:12])
        return out

    record = check(function, matrix, defined=lambda out: out[:12], fresh=("exp_into.out",) * 2, aliased=())
    assert record.allocations == 1 and record.kept == ("TL503",)


def test_b2_halves_that_overlap() -> None:
    """The second kernel overwrites rows of the first: the later value wins."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(12, 16)
        exp_into(x, out[:8])
        exp_into(y, out[4:])
        return out

    record = check(function, two_matrices, fresh=("exp_into.out",) * 2, aliased=())
    assert record.allocations <= 1


# B3 ---------------------------------------------------------------------------------------------------
def test_b3_two_outs_that_are_views_of_one_allocation() -> None:
    """``kv[0], kv[1]`` as the two outs of one kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        kv = torch.empty(2, *x.shape)
        exp_and_neg_into(x, kv[0], kv[1])
        return kv

    fresh = ("exp_and_neg_into.k", "exp_and_neg_into.v")
    record = check(function, matrix, fresh=fresh, aliased=(), allocations=0, kept=(), programs=1)
    assert "aten.cat.default([%" in record.after.text


def test_b3_two_outs_that_are_views_of_an_input() -> None:
    """The same where the base is the caller's: both halves are overwritten, so nothing is read of it."""

    def function(x: torch.Tensor, kv: torch.Tensor) -> None:
        exp_and_neg_into(x, kv[0], kv[1])

    def arguments() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(8, 16), torch.randn(2, 8, 16)

    check(function, arguments, fresh=("exp_and_neg_into.k", "exp_and_neg_into.v"), aliased=(), kept=())


def test_b3_interleaved_rows() -> None:
    """The outs are the even and the odd rows of one allocation."""

    def function(x: torch.Tensor) -> torch.Tensor:
        kv = torch.empty(16, 16)
        exp_and_neg_into(x, kv[::2], kv[1::2])
        return kv

    record = check(function, matrix, fresh=("exp_and_neg_into.k", "exp_and_neg_into.v"), aliased=())
    assert record.allocations <= 1


def test_b3_views_of_one_allocation_for_helion() -> None:
    """``kv[0]`` and ``kv[1]`` written by two launches of a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        kv = torch.empty(2, *x.shape)
        helion_exp_into(x, kv[0])
        helion_exp_into(-x, kv[1])
        return kv

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.exp(), (-x).exp()])

    fresh = ("helion_exp_into.out",) * 2
    check(function, matrix, model=model, fresh=fresh, aliased=(), allocations=0, kept=(), programs=1)


# B4 ---------------------------------------------------------------------------------------------------
def first_half(out: torch.Tensor) -> torch.Tensor:
    return out[:4]


def test_b4_partial_write_of_an_allocation_is_fresh() -> None:
    """A grid that ends half way: the rest is undefined either way."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_first_half(x, out)
        return out

    check(function, matrix, defined=first_half, fresh=("exp_first_half.out",), aliased=(), allocations=0, kept=())


def test_b4_partial_write_of_an_allocation_is_fresh_for_helion() -> None:
    """The same with a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        helion_exp_first_half(x, out)
        return out

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randn(16, 16),)

    check(
        function,
        arguments,
        model=torch.exp,
        defined=lambda out: out[:8],
        fresh=("helion_exp_first_half.out",),
        aliased=(),
        allocations=0,
        kept=(),
    )


# B5 ---------------------------------------------------------------------------------------------------
FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zeros": lambda x: torch.zeros(8, 16),
    "ones": lambda x: torch.ones(8, 16),
    "full": lambda x: torch.full((8, 16), 3.5),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda x: torch.full_like(x, -1.0),
    "new_zeros": lambda x: x.new_zeros(8, 16),
    "new_ones": lambda x: x.new_ones(8, 16),
    "new_full": lambda x: x.new_full((8, 16), 2.0),
}


SOME_FILLS = ("full", "zeros_like", "new_ones")


@pytest.mark.parametrize("name", FILLS)
def test_b5_partial_write_of_a_fill_is_kept(name: str) -> None:
    """The rows that the kernel does not write keep the fill."""
    fill = FILLS[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        out = fill(x)
        exp_first_half(x, out)
        return out

    record = check(function, matrix, fresh=(), aliased=("exp_first_half.out",), fills=1, kept=("TL505",))
    (kept,) = [action for action in record.actions if action.kind == "kept"]
    assert "does not visit all blocks" in kept.reason and "test_shared_and_partial.py" in kept.where


def test_b5_partial_write_of_a_fill_is_kept_for_helion() -> None:
    """The same with a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(x, 3.5)
        helion_exp_first_half(x, out)
        return out

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:8].exp(), torch.full_like(x[8:], 3.5)])

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randn(16, 16),)

    aliased = ("helion_exp_first_half.out",)
    check(function, arguments, model=model, fresh=(), aliased=aliased, fills=1, kept=("TL505",))


@pytest.mark.parametrize("name", SOME_FILLS)
def test_b5_accumulating_into_a_fill_is_kept(name: str) -> None:
    """The initial value is part of the sum."""
    fill = FILLS[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        out = fill(x)
        accumulate(x, out)
        return out

    check(function, matrix, fresh=(), aliased=("accumulate.out",), fills=1, kept=("TL501",))


def test_b5_accumulating_into_a_fill_is_kept_for_helion() -> None:
    """The same with a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(x, 0.25)
        helion_accumulate(x, out)
        return out

    aliased = ("helion_accumulate.out",)
    check(function, matrix, model=lambda x: x + 0.25, fresh=(), aliased=aliased, fills=1, kept=("TL501",))


def test_b5_partial_write_of_an_input_is_kept() -> None:
    """An input of which a part survives; the report has a code of its own for values that are no fill."""

    def function(x: torch.Tensor, out: torch.Tensor) -> None:
        exp_first_half(x, out)

    check(function, two_matrices, fresh=(), aliased=("exp_first_half.out",), kept=("TL502",))


# B6 ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FILLS)
def test_b6_overwritten_fill_is_dropped(name: str) -> None:
    """Every element is provably overwritten: the fill is gone."""
    fill = FILLS[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        out = fill(x)
        exp_into(x, out)
        return out

    record = check(function, matrix, fresh=("exp_into.out",), aliased=(), fills=0, allocations=0, kept=())
    assert (record.before.programs, record.programs) == (2, 1)
    (action,) = [action for action in record.actions if action.kind == "fresh"]
    assert "every block is visited and stored whole" in action.reason


def test_b6_overwritten_fill_is_dropped_for_helion() -> None:
    """The same with a Helion kernel, also where the blocks do not divide the sizes."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        helion_exp_into(x, out)
        return out

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randn(13, 150),)

    fresh = ("helion_exp_into.out",)
    check(function, arguments, model=torch.exp, fresh=fresh, aliased=(), fills=0, kept=(), programs=1)


def test_b6_overwritten_input_is_not_read() -> None:
    """A mutated input of which nothing survives: the caller sees the new value, the kernel no old one."""

    def function(x: torch.Tensor, out: torch.Tensor) -> None:
        exp_into(x, out)

    check(function, two_matrices, fresh=("exp_into.out",), aliased=(), kept=(), programs=1)


@pytest.mark.parametrize("name", SOME_FILLS)
def test_b6_fill_overwritten_in_pieces_is_dropped(name: str) -> None:
    """Two kernels overwrite one half each: the fill is gone too."""
    fill = FILLS[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        out = fill(x)
        exp_into(x[:4], out[:4])
        exp_into(x[4:], out[4:])
        return out

    record = check(function, matrix, fresh=("exp_into.out",) * 2, aliased=(), fills=0, kept=(), programs=1)
    assert "aten.cat.default([%" in record.after.text


def test_b6_input_overwritten_in_pieces_is_not_read() -> None:
    """The same for an input of which a first write is overwritten as well."""

    def function(x: torch.Tensor, out: torch.Tensor) -> None:
        exp_into(x[4:], out[2:6])
        exp_into(x[:4], out[:4])
        exp_into(x[4:], out[4:])

    record = check(function, two_matrices, fresh=("exp_into.out",) * 2, aliased=(), kept=(), programs=1)
    assert record.only.program.inputs == (0,)


def test_b6_fill_of_a_shared_tile_is_dropped() -> None:
    """One block for all steps, which the first step initialises: the old contents are never seen."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(1, 16)
        column_max_into(x, out)
        return out

    check(function, matrix, fresh=("column_max_into.out",), aliased=(), fills=0, kept=(), programs=1)


# B7 ---------------------------------------------------------------------------------------------------
def test_b7_fill_of_an_allocation_survives_a_partial_write() -> None:
    """``empty_like``, then ``fill_``, then a kernel that writes half."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out.fill_(7)
        exp_first_half(x, out)
        return out

    check(function, matrix, fresh=(), aliased=("exp_first_half.out",), allocations=0, fills=1, kept=("TL505",))


def test_b7_fill_of_an_allocation_survives_a_partial_write_for_helion() -> None:
    """The same with a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out.fill_(7)
        helion_exp_first_half(x, out)
        return out

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:8].exp(), torch.full_like(x[8:], 7)])

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randn(16, 16),)

    check(function, arguments, model=model, fresh=(), aliased=("helion_exp_first_half.out",), kept=("TL505",))


@pytest.mark.parametrize("initialise", ["zero_", "copy_", "masked_fill_", "item"])
def test_b7_other_initial_values_survive_a_partial_write(initialise: str) -> None:
    """The allocation gets its value by another in-place operator, or a part of it does."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        if initialise == "zero_":
            out.zero_()
        elif initialise == "copy_":
            out.copy_(x * 3)
        elif initialise == "masked_fill_":
            out.copy_(x)
            out.masked_fill_(x > 0, 5.0)
        else:
            out[4:] = 2.0
        exp_first_half(x, out)
        return out

    record = check(function, matrix, fresh=(), aliased=("exp_first_half.out",))
    assert record.kept[0] in ("TL502", "TL505")


def column_major(x: torch.Tensor) -> torch.Tensor:
    """Memory in columns, [16, 16]; slices of it reach the operators as strided views."""
    return torch.empty(16, 16, dtype=x.dtype).t()


INITIAL_VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fill_": lambda x: column_major(x).fill_(7),
    "copy_": lambda x: column_major(x).copy_(torch.cat([x, -x])),
    "zeros_like": lambda x: torch.zeros_like(column_major(x)),
    "kernel": lambda x: written(torch.cat([x, -x]), column_major(x)),
}


def written(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    exp_into(x, out)
    return out


@pytest.mark.parametrize("name", INITIAL_VALUES)
def test_b7_initial_value_of_column_major_memory_survives(name: str) -> None:
    """The buffer is column-major: what is left of its initial value stays where it was."""
    initial_value = INITIAL_VALUES[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        out = initial_value(x)
        exp_first_half(x, out[8:])
        double_into(x[:3, :4], out.t()[2:14:2, :4][3:])
        out[8, 0] = 9
        return out

    check(function, matrix)


# B8 ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("allocate", [torch.empty_like, torch.zeros_like])
def test_b8_reading_its_own_output(allocate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The kernel computes with what it stored before: no old value reaches the result."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = allocate(x)
        write_then_read_into(x, out)
        return out

    check(function, matrix, fresh=("write_then_read_into.out",), aliased=(), allocations=0, fills=0, kept=())


@pytest.mark.parametrize("allocate", [torch.empty_like, torch.zeros_like])
def test_b8_reading_its_own_output_for_helion(allocate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The same with a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = allocate(x)
        helion_write_then_read_into(x, out)
        return out

    fresh = ("helion_write_then_read_into.out",)
    check(function, matrix, model=lambda x: x.exp() * 2 + 1, fresh=fresh, aliased=(), allocations=0, fills=0, kept=())


# B9 ---------------------------------------------------------------------------------------------------
def test_b9_written_then_accumulated() -> None:
    """The first kernel's buffer is fresh; the second works in place on its result."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_into(x, out)
        accumulate(y, out)
        return out

    check(
        function,
        two_matrices,
        fresh=("exp_into.out",),
        aliased=("accumulate.out",),
        allocations=0,
        kept=("TL501",),
    )


def test_b9_written_then_accumulated_for_helion() -> None:
    """The same with Helion kernels."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        helion_exp_into(x, out)
        helion_accumulate(y, out)
        return out

    check(
        function,
        two_matrices,
        model=lambda x, y: x.exp() + y,
        fresh=("helion_exp_into.out",),
        aliased=("helion_accumulate.out",),
        allocations=0,
        kept=("TL501",),
    )


# B10 --------------------------------------------------------------------------------------------------
def test_b10_written_twice_with_the_first_value_used() -> None:
    """The value between the two writes is another one; both calls are fresh."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty_like(x)
        exp_into(x, out)
        between = out + 1
        exp_into(y, out)
        return between, out

    check(function, two_matrices, fresh=("exp_into.out",) * 2, aliased=(), allocations=0, kept=(), programs=1)


def test_b10_written_twice_with_the_first_value_used_for_helion() -> None:
    """The same with Helion kernels."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty_like(x)
        helion_exp_into(x, out)
        between = out + 1
        helion_exp_into(y, out)
        return between, out

    fresh = ("helion_exp_into.out",) * 2
    check(function, two_matrices, model=lambda x, y: (x.exp() + 1, y.exp()), fresh=fresh, aliased=(), kept=())


def test_b10_second_write_is_partial() -> None:
    """The second kernel writes half: it keeps the first value, which is also used on its own."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty_like(x)
        exp_into(x, out)
        between = out.clone()
        exp_first_half(y, out)
        return between, out

    check(function, two_matrices, fresh=("exp_into.out",), aliased=("exp_first_half.out",), kept=("TL502",))


def test_b10_first_value_never_used() -> None:
    """The first write is dead, and gone."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_into(x, out)
        add_into(x, y, out)
        return out

    record = check(function, two_matrices, fresh=("add_into.out",), aliased=(), allocations=0, kept=())
    assert "exp_into" not in record.after.text


# B11 --------------------------------------------------------------------------------------------------
def test_b11_one_buffer_as_two_outs() -> None:
    """One allocation given twice: what eager writes last is the result."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_and_neg_into(x, out, out)
        return out

    check(function, matrix, aliased=(), allocations=0)


def test_b11_one_input_as_two_outs() -> None:
    """The same with the caller's buffer."""

    def function(x: torch.Tensor, out: torch.Tensor) -> None:
        exp_and_neg_into(x, out, out)

    check(function, two_matrices)


def test_b11_overlapping_views_as_two_outs() -> None:
    """Two outs that share rows of one allocation."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(12, 16)
        exp_and_neg_into(x, out[:8], out[4:])
        return out

    check(function, matrix)


def test_b11_same_tensor_as_input_and_out() -> None:
    """``add_into(x, y, x)``: the old value is an input, the new one a result."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        add_into(x, y, x)
        return x * 2

    check(function, two_matrices)


def test_b11_same_allocation_as_input_and_out() -> None:
    """A fresh value, read and overwritten by one call."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        buffer = torch.empty_like(x)
        exp_into(x, buffer)
        add_into(buffer, y, buffer)
        return buffer

    check(function, two_matrices, fresh=("exp_into.out", "add_into.out"), aliased=(), allocations=0)


def test_b11_overlapping_views_as_input_and_out() -> None:
    """Rows 0 to 8 are read, rows 4 to 12 written: the kernel sees the values from before the call."""

    def function(buffer: torch.Tensor) -> None:
        double_into(buffer[:8], buffer[4:])

    check(function, lambda: (torch.randn(12, 16),))


def test_b11_two_arguments_that_overlap() -> None:
    """The caller passes two views of one memory, of which one is written."""

    def function(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        double_into(x, out)
        return x + 1

    def arguments() -> tuple[torch.Tensor, torch.Tensor]:
        memory = torch.randn(12, 16)
        return memory[:8], memory[4:]

    check(function, arguments)


def test_b11_same_tensor_as_input_and_out_for_helion() -> None:
    """``add(x, y, x)`` with a Helion kernel."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        helion_add_into(x, y, x)
        return x * 2

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.add_(y) * 2

    check(function, two_matrices, model=model)


def test_b11_overlapping_views_as_input_and_out_for_helion() -> None:
    """Rows 0 to 8 are read, rows 4 to 12 written, by a Helion kernel."""

    def function(buffer: torch.Tensor) -> None:
        helion_exp_into(buffer[:8], buffer[4:])

    def model(buffer: torch.Tensor) -> None:
        buffer[4:] = buffer[:8].exp()

    check(function, lambda: (torch.randn(12, 16),), model=model)


# B12 --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operator", [running_column_max, add_columns])
def test_b12_shared_tile_begins_with_the_initial_value(operator: Any) -> None:
    """All steps update one block: the initial value counts, and it counts once."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.full((1, 16), 0.5)
        operator(x, out)
        return out

    name = f"{operator._schema.name.split('::')[1]}.out"
    check(function, lambda: (torch.randn(4 * ROWS, 16),), fresh=(), aliased=(name,), fills=1, kept=("TL501",))


def test_b12_shared_tile_of_an_input() -> None:
    """The same on the caller's tensor, in two calls."""

    def function(x: torch.Tensor, total: torch.Tensor) -> None:
        add_columns(x, total)
        add_columns(x, total)

    check(function, lambda: (torch.randn(12, 16), torch.randn(1, 16)), aliased=("add_columns.out",) * 2)


def test_b12_atomic_adds_of_a_helion_kernel() -> None:
    """Every step adds to one tile, atomically: the initial value counts once."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.full((16,), 0.5)
        helion_add_columns(x, out)
        return out

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randn(32, 16),)

    aliased = ("helion_add_columns.out",)
    check(function, arguments, model=lambda x: x.sum(0) + 0.5, fresh=(), aliased=aliased, fills=1, kept=("TL501",))


def test_b12_running_maximum_of_a_helion_kernel() -> None:
    """The maximum is kept in registers and stored once: the fill is never seen."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(16)
        helion_column_max_into(x, out)
        return out

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randn(32, 16),)

    fresh = ("helion_column_max_into.out",)
    check(function, arguments, model=lambda x: x.amax(0), fresh=fresh, aliased=(), fills=0, kept=())


# B13 --------------------------------------------------------------------------------------------------
def paged() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Page numbers, new pages, and a cache of six pages."""
    return torch.tensor([4, 1], dtype=torch.int32), torch.randn(2, 8, 16), torch.randn(6, 8, 16)


def test_b13_paged_cache_keeps_untouched_pages() -> None:
    """A kernel updates the pages that an argument names: the cache is aliased from input to result."""

    def function(pages: torch.Tensor, values: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        write_pages(pages, values, cache)
        return cache.sum()

    record = check(function, paged, fresh=(), aliased=("write_pages.cache",), allocations=0, kept=("TL502",))
    assert "does not visit all blocks" in record.actions[0].reason
    assert record.only.program.signature.mutated == (2,)
    assert "clone" not in record.after.text and "write_box" not in record.after.text


def test_b13_paged_cache_updated_twice() -> None:
    """Two updates in a row, the second on the first one's result."""

    def function(pages: torch.Tensor, values: torch.Tensor, cache: torch.Tensor) -> None:
        write_pages(pages, values, cache)
        write_pages(pages + 1, -values, cache)

    record = check(function, paged, fresh=(), aliased=("write_pages.cache",) * 2, kept=("TL502",) * 2)
    assert record.only.program.signature.mutated == (2,)


def test_b13_pages_of_one_layer_of_a_cache() -> None:
    """The cache of one layer is a view of a larger one: other layers stay as they are."""

    def function(pages: torch.Tensor, values: torch.Tensor, cache: torch.Tensor) -> None:
        write_pages(pages, values, cache[1])

    def arguments() -> tuple[torch.Tensor, ...]:
        pages, values, cache = paged()
        return pages, values, torch.stack([cache, -cache, 2 * cache])

    check(function, arguments, fresh=(), aliased=("write_pages.cache",), kept=("TL502",))
