"""Views, layouts and shapes, V1 to V7: whatever strides and sizes a kernel's tensors have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.cases.harness import Record, check, compiled, refusal
from tests.cases.harness_views import (
    ACCUMULATES,
    ADDS,
    EXPS,
    IDS,
    Kernel,
    accumulate_any,
    add_column_sums,
    exp_any_into,
    exp_blocks_into,
    helion_add_one_and_widen_into,
    helion_column_min_into,
    helion_exp_any_into,
    helion_exp_blocks_into,
    helion_row_sums_by_blocks_into,
    helion_row_sums_into,
    made,
    torch_add_one_and_widen_into,
    torch_column_min_into,
    torch_exp_into,
    torch_row_sums_into,
    written,
)

with_exps = pytest.mark.parametrize("kernel, eager", EXPS, ids=IDS)
with_accumulates = pytest.mark.parametrize("kernel, eager", ACCUMULATES, ids=IDS)
with_adds = pytest.mark.parametrize("kernel, eager", ADDS, ids=IDS)

# V1: outs that are not contiguous --------------------------------------------------------------------
OUTS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "transposed": lambda n, m: torch.empty(m, n).t(),
    "every other column": lambda n, m: torch.empty(n, 2 * m)[:, ::2],
    "permuted": lambda n, m: torch.empty_permuted((n, m), (1, 0)),
    "strided": lambda n, m: torch.empty_strided((n, m), (1, n)),
    "inside a larger one": lambda n, m: torch.empty(n + 2, m + 3)[1:-1, 2:-1],
    "flattened and back": lambda n, m: torch.empty(n * m).view(n, m),
}


@with_exps
def test_v1_any_layout_of_out_is_fresh(kernel: Kernel, eager: Kernel) -> None:
    """The results have eager's strides, and no allocation is left: their layout is the caller's affair."""

    def using(op: Kernel) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        def function(x: torch.Tensor) -> list[torch.Tensor]:
            outs = [make(*x.shape) for make in OUTS.values()]
            for out in outs:
                op(x, out)
            return outs

        return function

    fresh = (written(kernel),) * len(OUTS)
    record = check(using(kernel), made(5, 7), model=using(eager), fresh=fresh, aliased=(), kept=())
    assert record.allocations == 0 and record.programs == 1


# V2: results that are views of out --------------------------------------------------------------------
VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "flat": lambda out: out.view(-1),
    "transposed": lambda out: out.t(),
    "expanded": lambda out: out.unsqueeze(0).expand(3, -1, -1),
    "other dtype": lambda out: out.view(torch.int32),
    "narrower dtype": lambda out: out.view(torch.int16),
    "sliced": lambda out: out[1:, ::2],
    "diagonal": lambda out: out.diagonal(),
    "windows": lambda out: out.unfold(1, 3, 2),
    "overlapping strides": lambda out: out.as_strided((3, 3), (1, 2), 1),
    "several": lambda out: (out, out.t(), out[0]),
    "parts without the whole": lambda out: (out[0], out[1], out[:, ::2]),
}


@with_exps
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_v2_view_taken_before_the_write(kernel: Kernel, eager: Kernel, view: Callable[..., Any]) -> None:
    """The view shows what the kernel wrote after it was taken; views of one memory share it, as in eager."""

    def using(op: Kernel) -> Callable[[torch.Tensor], Any]:
        def function(x: torch.Tensor) -> Any:
            out = torch.empty_like(x)
            result = view(out)
            op(x, out)
            return result

        return function

    check(using(kernel), made(4, 6), model=using(eager), fresh=(written(kernel),), aliased=(), allocations=0)


def test_v2_writing_to_one_result_shows_in_its_view() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        return y, y[0]

    x = torch.randn(2, 3)
    whole, row = compiled(function, Record())(x)
    row.fill_(7)
    assert torch.equal(whole[0], torch.full((3,), 7.0)) and torch.equal(whole[1], x[1] + 1)


# V3: inputs of any layout -----------------------------------------------------------------------------
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x[:1].expand(5, -1),
    "at an offset": lambda x: x.view(-1)[3:15].view(3, 4),
    "every other column": lambda x: x[:, ::2],
    "flipped": lambda x: x.flip(0),
    "overlapping": lambda x: x.view(-1).as_strided((4, 4), (2, 1), 1),
    "one element everywhere": lambda x: x[0, 0].expand(3, 4),
}


@with_exps
@pytest.mark.parametrize("inside", [True, False], ids=["made inside", "made by the caller"])
def test_v3_any_layout_of_input(kernel: Kernel, eager: Kernel, inside: bool) -> None:
    def using(op: Kernel) -> Callable[..., list[torch.Tensor]]:
        def function(*given: torch.Tensor) -> list[torch.Tensor]:
            inputs = [layout(given[0]) for layout in LAYOUTS.values()] if inside else given
            outs = [torch.empty(x.shape) for x in inputs]
            for x, out in zip(inputs, outs, strict=True):
                op(x, out)
            return outs

        return function

    def arguments() -> list[torch.Tensor]:
        return [torch.randn(4, 6)] if inside else [layout(torch.randn(4, 6)) for layout in LAYOUTS.values()]

    fresh = (written(kernel),) * len(LAYOUTS)
    check(using(kernel), arguments, model=using(eager), fresh=fresh, aliased=(), allocations=0)


@with_adds
def test_v3_same_tensor_twice(kernel: Kernel, eager: Kernel) -> None:
    """One tensor as two arguments, as two views of it, and as two tensors of the caller's over one memory."""

    def twice(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(x)
            op(x, x, out)
            return out

        return function

    def views(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            out, flat = torch.empty(6, 6), x.view(-1)
            op(flat.as_strided((6, 6), (0, 1)), x.t(), out)
            return out

        return function

    def two(op: Kernel) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            out = torch.empty(x.shape)
            op(x, y, out)
            return out

        return function

    def overlapping() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(6, 6)
        return x, x.t()

    fresh = (written(kernel),)
    check(twice(kernel), made(6, 6), model=twice(eager), fresh=fresh, allocations=0)
    check(views(kernel), made(6, 6), model=views(eager), fresh=fresh, allocations=0)
    check(two(kernel), overlapping, model=two(eager), fresh=fresh, allocations=0)


# Strided views of inputs that have gaps, or that do not start their memory
def shifted() -> tuple[torch.Tensor]:
    return (torch.randn(3, 3)[1:],)


def gapped() -> tuple[torch.Tensor]:
    return (torch.randn(2, 6)[:, ::2],)


@with_accumulates
@pytest.mark.parametrize("arguments", [shifted, gapped, made(2, 3)])
def test_v3_write_to_a_row_of_an_input_in_any_memory(
    kernel: Kernel, eager: Kernel, arguments: Callable[..., Any]
) -> None:
    """The row is described by strides and an offset of the whole memory, of which the input is only a part."""

    def using(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            op(torch.ones(3), x[1])
            return x.sum()

        return function

    check(using(kernel), arguments, model=using(eager), aliased=(written(kernel),), kept=("TL501",))


def test_v3_write_to_a_row_of_an_input_at_a_dynamic_offset() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        accumulate_any(torch.ones(3), x[1])
        return x.sum()

    run = compiled(function, Record(), dynamic=True)
    for start in (1, 0, 2):
        x = torch.arange(15.0).view(5, 3)
        assert run(x[start:]) == x[start:].sum()
        assert torch.equal(x, torch.arange(15.0).view(5, 3).index_add(0, torch.tensor([start + 1]), torch.ones(1, 3)))


def test_v3_strides_of_memory_outside_of_the_base_are_refused() -> None:
    """``as_strided`` counts from the start of the memory, which a slice of a value does not hold."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x + 1)[1:].as_strided((3,), (1,), 0)

    assert refusal(function, made(3, 3)).code == "TL304"


def test_v3_strided_view_of_a_slice_counts_from_the_start_of_memory() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x[1:].as_strided((3,), (1,), 3) + x[:, ::2].as_strided((3,), (3,), 0)

    check(function, made(3, 3))


# V4: a view of an input that is only read -------------------------------------------------------------
@with_exps
def test_v4_view_of_an_input_is_no_alias(kernel: Kernel, eager: Kernel) -> None:
    def using(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            part = x[1:3].t()
            out = torch.empty(part.shape)
            op(part, out)
            return out

        return function

    record = check(using(kernel), made(6, 6), model=using(eager), fresh=(written(kernel),), aliased=(), programs=1)
    assert record.only.program is not None and record.only.program.signature.mutated == ()


# V5: sizes that no block divides ----------------------------------------------------------------------
RAGGED = [(4, 8, 200), (4, 13, 200), (5, 13, 200), (1, 1, 1)]


@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("kernel", [exp_blocks_into, helion_exp_blocks_into], ids=["pallas", "helion"])
def test_v5_ragged_axes(kernel: Kernel, shape: tuple[int, ...]) -> None:
    """The last block of an axis hangs over the edge; the block still counts as written whole."""

    def using(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(x)
            op(x, out)
            return out

        return function

    check(using(kernel), made(*shape), model=using(torch_exp_into), fresh=(written(kernel),), fills=0)


REDUCTIONS = {
    "row sums": (helion_row_sums_into, torch_row_sums_into, 0),
    "row sums by blocks": (helion_row_sums_by_blocks_into, torch_row_sums_into, 0),
    "column minima": (helion_column_min_into, torch_column_min_into, 1),
}


@pytest.mark.parametrize("shape", [(13, 200), (3, 7)], ids=str)
@pytest.mark.parametrize("kernel, eager, axis", REDUCTIONS.values(), ids=REDUCTIONS)
def test_v5_padding_is_never_reduced(kernel: Kernel, eager: Kernel, axis: int, shape: tuple[int, int]) -> None:
    """exp(0) = 1 of a padded element would show in a sum, and in a minimum of larger numbers."""

    def using(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty(x.shape[axis])
            op(x + 5, out)
            return out

        return function

    check(using(kernel), made(*shape), model=using(eager), fresh=(written(kernel),), allocations=0)


def test_v5_accumulation_over_a_ragged_axis_in_pallas() -> None:
    def function(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        add_column_sums(x, total)
        return total

    def model(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return total.add_(x.sum(0, keepdim=True))

    check(function, lambda: (torch.randn(13, 7), torch.randn(1, 7)), model=model, aliased=("add_column_sums.out",))


# V6: nothing, and a single element --------------------------------------------------------------------
@with_exps
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_v6_zero_size(kernel: Kernel, eager: Kernel, shape: tuple[int, ...]) -> None:
    def using(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(x)
            op(x, out)
            return out

        return function

    check(using(kernel), made(*shape), model=using(eager), fresh=(written(kernel),), allocations=0)


@pytest.mark.parametrize("shape", [(0, 128), (8, 0), (0, 0)], ids=str)
def test_v6_zero_size_grid_of_a_pallas_kernel(shape: tuple[int, int]) -> None:
    """Pallas refuses such a call; nothing is left of it in the program."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_blocks_into(x, out)
        return out

    check(function, made(*shape), model=lambda x: x.exp(), aliased=(), allocations=0)


@pytest.mark.parametrize("start", [torch.ones, torch.zeros], ids=["input", "fill"])
def test_v6_accumulator_of_no_rows_keeps_its_contents(start: Callable[..., torch.Tensor]) -> None:
    """A grid without steps stores nothing, so what was there before is the result."""

    def function(x: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        filled = torch.full((1, 7), 3.0)
        add_column_sums(x, total)
        add_column_sums(x, filled)
        return total, filled

    def model(x: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return total, torch.full((1, 7), 3.0)

    check(function, lambda: (torch.randn(0, 7), start(1, 7)), model=model)


def test_v6_output_without_elements_beside_another() -> None:
    """The kernel runs for the output that has elements."""

    def using(op: Kernel) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            plain, wide = torch.empty_like(x), torch.empty(x.shape[0], 0)
            op(x, plain, wide)
            return plain, wide

        return function

    check(using(helion_add_one_and_widen_into), made(5), model=using(torch_add_one_and_widen_into), allocations=0)


def test_v6_reduction_of_no_elements_in_helion_is_refused() -> None:
    """Helion's code for it does not trace; the refusal names the argument."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape[0])
        helion_row_sums_into(x, out)
        return out

    found = refusal(function, made(7, 0))
    assert (found.code, found.subject) == ("TL206", "argument 'x' of helion_row_sums_into")
    assert found.reason == "expected an argument with elements, because an output has some, got f32[7, 0]"


def test_v6_zero_dimensional() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = torch.empty_like(x)
        exp_any_into(x, out)
        accumulate_any(torch.ones(()), x)
        return out, x[None], x * 2

    check(function, made(), fresh=("exp_any_into.out",), aliased=("accumulate_any.out",), allocations=0)


def test_v6_zero_dimensional_through_a_view_in_helion() -> None:
    def using(op: Kernel) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(x)
            op(x[None], out[None])
            return out

        return function

    check(using(helion_exp_any_into), made(), model=using(torch_exp_into), fresh=("helion_exp_any_into.out",))


def test_v6_zero_size_everywhere() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        accumulate_any(x[:0], x[:0])
        return x[:0] + 1, x.sum(), torch.zeros(0, 3), x.new_empty(0), x[:0].sum()

    check(function, made(3))


# V7: a second shape -----------------------------------------------------------------------------------
@with_exps
@pytest.mark.parametrize("dynamic", [None, False, True, "marked"], ids=str)
def test_v7_other_shapes(kernel: Kernel, eager: Kernel, dynamic: Any) -> None:
    """Each shape gets its own program; results have the sizes and strides of their own call."""

    def using(op: Kernel) -> Callable[[torch.Tensor], tuple[torch.Tensor, int]]:
        def function(x: torch.Tensor) -> tuple[torch.Tensor, int]:
            out = torch.empty_like(x)
            op(x, out)
            return out * x.shape[0], x.shape[0] + 1

        return function

    run = compiled(using(kernel), Record(), dynamic=dynamic if dynamic != "marked" else None)
    for x in (torch.randn(4, 6), torch.randn(5, 9), torch.randn(4, 6), torch.randn(0, 6), torch.randn(9, 7).t()):
        if dynamic == "marked":
            torch._dynamo.maybe_mark_dynamic(x, 0)
        result, wanted = run(x), using(eager)(x)
        torch.testing.assert_close(result, wanted, check_stride=x.numel() > 0)
        assert type(result[1]) is int


def test_v7_dynamic_graph_is_captured_once() -> None:
    """Other sizes are compiled beneath Dynamo, which does not run again."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_any_into(x, out)
        return out

    record = Record()
    run = compiled(function, record, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for size in (4, 5, 6, 4):
        x = torch.randn(size, 3)
        torch.testing.assert_close(run(x), x.exp())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len(record.graphs) == 3


def test_v7_sizes_as_values() -> None:
    def function(x: torch.Tensor) -> tuple[Any, ...]:
        return x * x.shape[0], x.new_full((x.shape[0] * 2,), 3.0), x.shape[0] + 1, x.reshape(-1)[: x.numel() // 2]

    run = compiled(function, Record(), dynamic=True)
    for shape in ((4, 6), (5, 9), (7, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(x), function(x))
