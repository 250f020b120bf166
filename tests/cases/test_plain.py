"""The plain cases, A1 to A8: allocations that a kernel overwrites, however they are written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import empty

from tests.cases.case_kernels import (
    accumulate,
    add_into,
    double_into,
    exp_into,
    exp_maybe,
    extrema_out,
    helion_accumulate,
    helion_add_into,
    helion_exp,
    helion_exp_into,
    helion_step,
    helion_sum_and_double_into,
    scale_out,
    split_rows,
    step,
    sum_and_round_into,
)
from tests.cases.harness import check


def matrix() -> tuple[torch.Tensor]:
    return (torch.randn(8, 16),)


def two_matrices() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 16), torch.randn(8, 16)


# A1 ---------------------------------------------------------------------------------------------------
def test_a1_empty_like_is_fresh() -> None:
    """An ``empty_like`` of which a kernel writes every element, returned."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_into(x, out)
        return out

    record = check(function, matrix, fresh=("exp_into.out",), aliased=(), allocations=0, kept=())
    assert (record.before.aliased, record.before.allocations) == (("exp_into.out",), 1)
    assert (record.before.programs, record.programs) == (2, 1)
    (action,) = [action for action in record.actions if action.kind == "fresh"]
    assert action.code == "" and "out = torch.empty_like(x)" in action.where and action.nbytes == 8 * 16 * 4
    assert [action.kind for action in record.actions] == ["fresh", "removed"]


def test_a1_empty_like_is_fresh_for_helion() -> None:
    """The same with a Helion kernel, which Helion itself compiles to an aliased launch."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        helion_exp_into(x, out)
        return out

    record = check(function, matrix, model=torch.exp, fresh=("helion_exp_into.out",), aliased=(), allocations=0)
    assert record.before.aliased == ("helion_exp_into.out",)


def test_a1_allocation_inside_a_helion_kernel_is_fresh() -> None:
    """The allocation stands in the host code of the Helion kernel."""
    record = check(lambda x: helion_exp(x), matrix, model=torch.exp, aliased=(), allocations=0, programs=1)
    assert record.fresh == ("helion_exp.out",)


def test_a1_a_chain_of_kernels_is_one_program() -> None:
    """Allocations of several kernels with computation between them: nothing is left to split the program."""

    def function(x: torch.Tensor) -> torch.Tensor:
        first = torch.empty_like(x)
        exp_into(x, first)
        middle = first.sin() + 1
        second = torch.empty_like(x)
        add_into(middle, x, second)
        return second * 2

    record = check(function, matrix, fresh=("exp_into.out", "add_into.out"), aliased=(), allocations=0, programs=1)
    assert record.before.programs == 5


def test_a1_without_passes_the_graph_is_as_written() -> None:
    """``passes=False`` leaves the allocation and the alias, and computes the same."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_into(x, out)
        return out

    record = check(function, matrix, options={"passes": False}, fresh=(), aliased=("exp_into.out",), allocations=1)
    assert record.programs == record.before.programs == 2 and record.actions == []


# A2 ---------------------------------------------------------------------------------------------------
FACTORIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "empty": lambda x: torch.empty(8, 16),
    "empty_from_torch": lambda x: empty((8, 16), dtype=torch.float32),
    "empty_of_size": lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device),
    "new_empty": lambda x: x.new_empty(x.shape),
    "new_empty_method": lambda x: x.new_empty(8, 16, dtype=torch.float32),
    "empty_strided": lambda x: torch.empty_strided((8, 16), (16, 1)),
    "new_empty_strided": lambda x: x.new_empty_strided((8, 16), (16, 1)),
    "empty_permuted": lambda x: torch.empty_permuted((8, 16), (0, 1)),
    "empty_like_with_dtype": lambda x: torch.empty_like(x, dtype=torch.float32),
    "tensor_constructor": lambda x: torch.Tensor(8, 16),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a2_every_factory_is_fresh(name: str) -> None:
    """Every way to ask torch for uninitialised memory."""
    allocate = FACTORIES[name]

    def function(x: torch.Tensor) -> torch.Tensor:
        out = allocate(x)
        exp_into(x, out)
        return out

    record = check(function, matrix, fresh=("exp_into.out",), aliased=(), allocations=0, kept=())
    assert record.before.allocations == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_a2_every_element_type_is_fresh(dtype: torch.dtype) -> None:
    """Undefined memory of types that have no NaN."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=dtype)
        double_into(x, out)
        return out

    def arguments() -> tuple[torch.Tensor]:
        return (torch.randint(0, 5, (3, 5)),)

    check(function, arguments, fresh=("double_into.out",), aliased=(), allocations=0, kept=())


# A3 ---------------------------------------------------------------------------------------------------
def test_a3_outs_of_different_types_between_the_inputs() -> None:
    """Two empties of different shape and dtype, two outputs of one kernel that stand between its inputs."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = torch.empty(x.shape, dtype=torch.int32)
        sums = torch.empty(x.shape[0], 1)
        sum_and_round_into(sums, x, rounded, y)
        return rounded, sums

    fresh = ("sum_and_round_into.sums", "sum_and_round_into.rounded")
    check(function, two_matrices, fresh=fresh, aliased=(), allocations=0, kept=())


def test_a3_outs_of_different_types_in_a_helion_kernel() -> None:
    """The same with a Helion kernel: each value goes to the argument it was stored to."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        doubled = torch.empty(x.shape, dtype=torch.bfloat16)
        sums = torch.empty(x.shape[0])
        helion_sum_and_double_into(sums, x, doubled, y)
        return doubled, sums

    def model(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (2 * (x + y)).bfloat16(), (x + y).sum(1)

    record = check(function, two_matrices, model=model, aliased=(), allocations=0, kept=())
    assert sorted(record.fresh) == ["helion_sum_and_double_into.doubled", "helion_sum_and_double_into.sums"]


# A4 ---------------------------------------------------------------------------------------------------
CONTAINERS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {}


def container(make: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    CONTAINERS[make.__name__] = make
    return make


@container
def tuple_assignment(x: torch.Tensor) -> Any:
    a, b = torch.empty_like(x), torch.empty_like(x)
    return a, b


@container
def in_a_list(x: torch.Tensor) -> Any:
    outs = [torch.empty_like(x) for _ in range(2)]
    return outs[0], outs[1]


@container
def in_a_dict(x: torch.Tensor) -> Any:
    outs = {"a": torch.empty_like(x), "b": torch.empty_like(x)}
    return outs["a"], outs["b"]


@container
def in_a_nested_tuple(x: torch.Tensor) -> Any:
    ((a,), (_, b)) = ((torch.empty_like(x),), (None, torch.empty_like(x)))
    return a, b


@container
def chained_assignment_and_swap(x: torch.Tensor) -> Any:
    a = spare = torch.empty_like(x)
    b = torch.empty_like(x)
    a, b = b, a
    assert spare is b
    return a, b


@pytest.mark.parametrize("name", CONTAINERS)
def test_a4_allocations_in_containers_are_fresh(name: str) -> None:
    """Two equal empties made together; the names they travel under make no difference."""
    allocate = CONTAINERS[name]

    def function(x: torch.Tensor) -> dict[str, torch.Tensor]:
        a, b = allocate(x)
        exp_into(x, a)
        double_into(x, b)
        return {"a": a, "b": b}

    check(function, matrix, fresh=("exp_into.out", "double_into.out"), aliased=(), allocations=0, kept=())


def test_a4_tuple_of_allocations_is_fresh_for_helion() -> None:
    """A tuple of empties, given to two Helion kernels."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = torch.empty_like(x), torch.empty_like(x)
        helion_exp_into(x, a)
        helion_add_into(a, y, b)
        return a, b

    def model(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.exp(), x.exp() + y

    fresh = ("helion_exp_into.out", "helion_add_into.out")
    check(function, two_matrices, model=model, fresh=fresh, aliased=(), allocations=0, kept=())


# A5 ---------------------------------------------------------------------------------------------------
def test_a5_only_the_mutated_input_keeps_its_alias() -> None:
    """One input updated in place and one empty output in the same call."""

    def function(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        step(state, x, out)
        return out

    check(function, two_matrices, fresh=("step.out",), aliased=("step.state",), allocations=0, kept=("TL501",))


def test_a5_only_the_mutated_input_keeps_its_alias_for_helion() -> None:
    """The same with a Helion kernel, which lists both as written in place."""

    def function(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        helion_step(state, x, out)
        return out

    def model(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        state += x
        return 2 * state

    check(
        function,
        two_matrices,
        model=model,
        fresh=("helion_step.out",),
        aliased=("helion_step.state",),
        allocations=0,
        kept=("TL501",),
    )


# A6 ---------------------------------------------------------------------------------------------------
def allocated_by_a_helper(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Exp(torch.nn.Module):
    """Allocates in a method of its own."""

    def allocate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.allocate(x)
        exp_into(x, out)
        return out


PLACES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}


def place(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    PLACES[function.__name__] = function
    return function


@place
def in_an_if(x: torch.Tensor) -> torch.Tensor:
    if x.shape[0] > 4:
        out = torch.empty_like(x)
    else:
        out = torch.zeros_like(x)
    exp_into(x, out)
    return out


@place
def in_a_with(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), contextlib.nullcontext():
        out = torch.empty_like(x)
        exp_into(x, out)
    return out


@place
def in_a_helper_function(x: torch.Tensor) -> torch.Tensor:
    out = allocated_by_a_helper(x)
    exp_into(x, out)
    return out


@place
def in_a_loop(x: torch.Tensor) -> torch.Tensor:
    out = x
    for _ in range(1):
        out = torch.empty_like(x)
        exp_into(x, out)
    return out


@place
def in_a_submodule(x: torch.Tensor) -> torch.Tensor:
    return SUBMODULE(x)


@place
def under_the_name_of_a_parameter(x: torch.Tensor) -> torch.Tensor:
    given = x
    x = torch.empty_like(x)
    exp_into(given, x)
    return x


@place
def in_a_closure(x: torch.Tensor) -> torch.Tensor:
    def run() -> torch.Tensor:
        out = torch.empty_like(x)
        exp_into(x, out)
        return out

    return run()


SUBMODULE = torch.nn.Sequential(Exp())


@pytest.mark.parametrize("name", PLACES)
def test_a6_the_place_of_an_allocation_does_not_matter(name: str) -> None:
    """Allocated in a branch, a ``with``, a helper, a loop, a submodule, a closure, or over a parameter's name."""
    check(PLACES[name], matrix, fresh=("exp_into.out",), aliased=(), allocations=0, kept=())


def test_a6_parameter_name_reused_for_helion() -> None:
    """The name of a parameter reused for the output of a Helion kernel."""

    def function(x: torch.Tensor) -> torch.Tensor:
        given = x
        x = torch.empty_like(x)
        helion_exp_into(given, x)
        return x

    check(function, matrix, model=torch.exp, fresh=("helion_exp_into.out",), aliased=(), allocations=0)


# A7 ---------------------------------------------------------------------------------------------------
def test_a7_optional_out_that_is_none() -> None:
    """``Tensor(b!)? mask=None``: an out that is not there stays away."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_maybe(x, out)
        return out

    check(function, matrix, fresh=("exp_maybe.out",), aliased=(), allocations=0, kept=())


def test_a7_optional_out_that_is_given() -> None:
    """``Tensor(b!)? mask``: an out like any other."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, mask = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
        exp_maybe(x, out, mask)
        return mask, out

    check(function, matrix, fresh=("exp_maybe.out", "exp_maybe.mask"), aliased=(), allocations=0, kept=())


def test_a7_list_of_outs() -> None:
    """``Tensor(a!)[] outs`` of different lengths: each becomes fresh, in order."""

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        outs = [torch.empty(length, 16) for length in (3, 1, 4)]
        split_rows(x, outs)
        return outs

    fresh = ("split_rows.outs[0]", "split_rows.outs[1]", "split_rows.outs[2]")
    check(function, matrix, fresh=fresh, aliased=(), allocations=0, kept=())


def test_a7_list_with_one_defined_out() -> None:
    """A list of an empty, an input and an empty: the kernel overwrites the input too."""

    def function(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        first, last = torch.empty(3, 16), torch.empty(4, 16)
        split_rows(x, [first, y, last])
        return [first, last]

    def arguments() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(8, 16), torch.randn(1, 16)

    check(function, arguments, aliased=(), allocations=0, kept=())


def test_a7_empty_list_of_outs() -> None:
    """A call that writes nothing is gone."""

    def function(x: torch.Tensor) -> torch.Tensor:
        split_rows(x[:0], [])
        return x + 1

    record = check(function, matrix, fresh=(), aliased=(), allocations=0)
    assert "kernel" not in record.after.text


def test_a7_operator_tagged_out() -> None:
    """An operator with ``torch.Tag.out`` and one out, which it returns."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        scale_out(x, 3.0, out=out)
        return out

    check(function, matrix, fresh=("scale_out.out",), aliased=(), allocations=0, kept=())


def test_a7_operator_tagged_out_with_its_result_used() -> None:
    """The same where the caller uses what the operator returns, the out itself."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return scale_out(x, 3.0, out=torch.empty_like(x)) + 1

    check(function, matrix, fresh=("scale_out.out",), aliased=(), allocations=0, kept=())


def test_a7_operator_tagged_out_with_two_outs() -> None:
    """Two outs, returned as a tuple."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.empty(8), torch.empty(8)
        extrema_out(x, low=low, high=high)
        return high - low, low

    check(function, matrix, fresh=("extrema_out.low", "extrema_out.high"), aliased=(), allocations=0, kept=())


def test_a7_operator_tagged_out_on_an_input() -> None:
    """The out is an argument of the function: the caller's tensor is updated, and nothing is read from it."""

    def function(x: torch.Tensor, y: torch.Tensor) -> None:
        scale_out(x, 0.5, out=y)

    check(function, two_matrices, fresh=("scale_out.out",), aliased=(), allocations=0, kept=())


# A8 ---------------------------------------------------------------------------------------------------
def test_a8_unused_allocation_is_removed() -> None:
    """An empty that nothing uses."""

    def function(x: torch.Tensor) -> torch.Tensor:
        torch.empty(1024, 1024)
        return x + 1

    check(function, matrix, allocations=0, kept=(), programs=1)


def test_a8_allocation_used_for_its_shape_is_removed() -> None:
    """An empty of which only shape, dtype and strides are used."""

    def function(x: torch.Tensor) -> torch.Tensor:
        like = torch.empty(8, 16, dtype=torch.float64)
        return torch.zeros(like.shape, dtype=like.dtype) + x.expand_as(like) + like.stride(0) + torch.ones_like(like)

    check(function, matrix, allocations=0, kept=(), programs=1)


def test_a8_allocation_overwritten_by_torch_is_removed() -> None:
    """An empty that ``copy_`` and ``fill_`` overwrite, without any kernel."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied, filled = torch.empty_like(x), torch.empty_like(x)
        copied.copy_(x + 1)
        filled.fill_(3.0)
        return copied, filled

    check(function, matrix, allocations=0, kept=(), programs=1)


def test_a8_allocation_whose_contents_are_used_is_kept() -> None:
    """The counterpart: undefined contents that something computes with stay, and the report says who."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        junk = torch.empty_like(x)
        return x + 1, junk * 2

    record = check(function, matrix, defined=lambda results: results[0], allocations=1, kept=("TL503",))
    (action,) = [action for action in record.actions if action.kind == "kept"]
    assert "mul" in action.reason and "junk = torch.empty_like(x)" in action.where


def test_a8_accumulating_into_an_allocation_is_reported() -> None:
    """A kernel that reads an empty before it writes it: fresh, and the report warns."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        junk = torch.empty_like(x)
        accumulate(x, junk)
        return x + 1, junk

    record = check(function, matrix, defined=lambda results: results[0], fresh=("accumulate.out",), allocations=0)
    assert [action.code for action in record.actions if action.kind == "fresh"] == ["TL504"]


def test_a8_accumulating_into_an_allocation_is_reported_for_helion() -> None:
    """The same with a Helion kernel."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        junk = torch.empty_like(x)
        helion_accumulate(x, junk)
        return x + 1, junk

    record = check(
        function,
        matrix,
        model=lambda x: (x + 1, torch.empty_like(x)),
        defined=lambda results: results[0],
        fresh=("helion_accumulate.out",),
        allocations=0,
    )
    assert [action.code for action in record.actions if action.kind == "fresh"] == ["TL504"]
