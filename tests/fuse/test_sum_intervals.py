"""Running sums from each place to each later one: the graph, values, what is left alone, and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import pytest
import torch
from expecttest import assert_expected_inline as inline

from tests.cases.harness import Record, capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import compiled, trained
from tpu_lowering import aot, compat
from tpu_lowering.fuse.sum_intervals import SumIntervals
from tpu_lowering.ir import chips
from tpu_lowering.lower import intervals as lower_intervals
from tpu_lowering.passes.simplify_views import SimplifyViews

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def segment_sums(x: torch.Tensor) -> torch.Tensor:
    """As models with selective states write it: -inf where no interval is."""
    length = x.shape[-1]
    behind = torch.ones(length, length, dtype=torch.bool).tril(-1)
    sums = x[..., None].expand(*x.shape, length).masked_fill(~behind, 0).cumsum(-2)
    return sums.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)


def with_the_first(x: torch.Tensor) -> torch.Tensor:
    """Intervals hold the element that they begin with."""
    places = torch.arange(x.shape[-1])
    kept = places[:, None] >= places
    return torch.where(kept, x[..., None].expand(*x.shape, x.shape[-1]), 0.0).cumsum(-2)


def rows_last(x: torch.Tensor) -> torch.Tensor:
    """The row is summed along the last dimension, and columns stand before the other ones."""
    length = x.shape[-1]
    behind = torch.ones(length, length, dtype=torch.bool).tril(-1).mT[:, None]
    return x.expand(length, *x.shape).masked_fill(~behind, 0).cumsum(-1)


def by_tril(x: torch.Tensor) -> torch.Tensor:
    return x[..., None].expand(*x.shape, x.shape[-1]).tril(-1).cumsum(-2)


FUNCTIONS = (segment_sums, with_the_first, rows_last, by_tril)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def moved(record: Record, graph: str = "inference") -> int:
    return sum("running sums" in action.reason for action in record.graphs[graph].actions)


def test_sums_are_differences() -> None:
    inline(
        before_and_after(SumIntervals(), segment_sums, (3, 4), first=(SimplifyViews(),)),
        """\
%arg0_1: f32[3, 4] = input
%ones: pred[4, 4] = aten.ones.default([4, 4], dtype=bool, device=cpu, pin_memory=False)
%tril: pred[4, 4] = aten.tril.default(%ones, -1)
%reshape_default: f32[3, 4, 1] = aten.reshape.default(%arg0_1, [3, 4, 1])
%expand: f32[3, 4, 4] = aten.expand.default(%reshape_default, [3, 4, 4])
%bitwise_not: pred[4, 4] = aten.bitwise_not.default(%tril)
%masked_fill: f32[3, 4, 4] = aten.masked_fill.Scalar(%expand, %bitwise_not, 0)
%cumsum: f32[3, 4, 4] = aten.cumsum.default(%masked_fill, -2)
%ones_1: pred[4, 4] = aten.ones.default([4, 4], dtype=bool, device=cpu, pin_memory=False)
%tril_1: pred[4, 4] = aten.tril.default(%ones_1)
%bitwise_not_1: pred[4, 4] = aten.bitwise_not.default(%tril_1)
%masked_fill_1: f32[3, 4, 4] = aten.masked_fill.Scalar(%cumsum, %bitwise_not_1, -inf)
return (%masked_fill_1)

sum_intervals:
moved cumsum: differences of the row's running sums, computed where they are used

%arg0_1: f32[3, 4] = input
%reshape_default: f32[3, 4, 1] = aten.reshape.default(%arg0_1, [3, 4, 1])
%reshape_default_1: f32[3, 4] = aten.reshape.default(%reshape_default, [3, 4])
%interval_sums: f32[3, 4, 4] = interval_sums(%reshape_default_1, 1)
%ones_1: pred[4, 4] = aten.ones.default([4, 4], dtype=bool, device=cpu, pin_memory=False)
%tril_1: pred[4, 4] = aten.tril.default(%ones_1)
%bitwise_not_1: pred[4, 4] = aten.bitwise_not.default(%tril_1)
%masked_fill_1: f32[3, 4, 4] = aten.masked_fill.Scalar(%interval_sums, %bitwise_not_1, -inf)
return (%masked_fill_1)""",
    )


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, bf16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 16), (4, 1)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_equals_eager(function: Callable[..., torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if function is rows_last and len(shape) != 2:
        shape = (math.prod(shape[:-1]), shape[-1])
    x = drawn(*shape, dtype=dtype)
    run, record = compiled(function)
    result = run(x)
    assert moved(record) == (shape[-1] > 1)
    torch.testing.assert_close(result, function(x))


def test_gradients_equal_eager() -> None:
    record, pairs = trained(segment_sums_of_decay, (drawn(3, 16),), verify=True)
    assert moved(record, "forward") == 1
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def segment_sums_of_decay(x: torch.Tensor) -> torch.Tensor:
    return segment_sums(-x.exp()).exp()


def test_a_short_interval_behind_a_long_row_loses_nothing() -> None:
    """Sums from the beginning are about 3e4 here: a difference of them as float32 numbers would be wrong by 2e-3."""
    x = drawn(2, 512).abs() * 0.01
    x[:, :256] = 123.45678
    run, record = compiled(segment_sums)
    result, exact = run(x), segment_sums(x.double())
    assert moved(record) == 1
    seen = exact.isfinite()
    error = ((result - exact).abs() / exact.abs().clamp(min=1e-3))[seen].max()
    eager = ((segment_sums(x) - exact).abs() / exact.abs().clamp(min=1e-3))[seen].max()
    assert error < 2e-6 and error < 2 * eager + 2e-7


@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_numbers_that_are_not_finite_stay_in_their_intervals(dtype: torch.dtype) -> None:
    x = drawn(4, 12, dtype=dtype)
    x[0, 3], x[1, 5], x[2, 7] = torch.nan, torch.inf, -torch.inf
    x[3, 2], x[3, 9] = torch.inf, -torch.inf
    for function in (segment_sums, with_the_first):
        run, record = compiled(function)
        torch.testing.assert_close(run(x), function(x), equal_nan=True)
        assert moved(record) == 1


def test_sums_from_the_beginning_do_not_overflow() -> None:
    x = torch.full((1, 8), 3e38)
    x[:, 1::2] = -3e38
    x[:, 2] = 2e38
    run, _ = compiled(by_tril)
    torch.testing.assert_close(run(x), by_tril(x))


# What stays -------------------------------------------------------------------------------------------
def above(x: torch.Tensor) -> torch.Tensor:
    return x[..., None].expand(*x.shape, x.shape[-1]).triu(1).cumsum(-2)


def far_behind(x: torch.Tensor) -> torch.Tensor:
    return x[..., None].expand(*x.shape, x.shape[-1]).tril(-2).cumsum(-2)


def along_columns(x: torch.Tensor) -> torch.Tensor:
    return x[..., None].expand(*x.shape, x.shape[-1]).tril(-1).cumsum(-1)


def filled_with_one(x: torch.Tensor) -> torch.Tensor:
    behind = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool).tril(-1)
    return x[..., None].expand(*x.shape, x.shape[-1]).masked_fill(~behind, 1).cumsum(-2)


def a_given_mask(x: torch.Tensor) -> torch.Tensor:
    return x[..., None].expand(*x.shape, x.shape[-1]).masked_fill(x[:, None] > 0, 0).cumsum(-2)


def wider_than_long(x: torch.Tensor) -> torch.Tensor:
    return x[..., None].expand(*x.shape, 9).tril(-1).cumsum(-2)


def of_whole_numbers(x: torch.Tensor) -> torch.Tensor:
    whole = x.to(torch.int32)
    return whole[..., None].expand(*x.shape, x.shape[-1]).tril(-1).cumsum(-2)


def nothing_is_repeated(x: torch.Tensor) -> torch.Tensor:
    return (x[:, None] * x[..., None]).tril(-1).cumsum(-2)


STAY = (
    above, far_behind, along_columns, filled_with_one, a_given_mask, wider_than_long, of_whole_numbers,
    nothing_is_repeated,
)  # fmt: skip


@pytest.mark.parametrize("function", STAY)
def test_what_is_no_interval_stays(function: Callable[..., torch.Tensor]) -> None:
    module = normalised(capture(function, drawn(6, 6)))
    SimplifyViews()(module.graph)
    assert SumIntervals()(module.graph) == []


def test_xla_writes_no_square() -> None:
    """The square is 256 MiB: it was written and read several times before what uses it was computed."""

    def used(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (segment_sums(x).exp() * y).sum(-1)

    given = drawn(1024, 256), drawn(1024, 256, 256)
    sizes = [
        aot.aot_compile(used, given, target=TPU7X.name, options={"passes": passes}).hbm_bytes
        for passes in ("simplify_views,sum_intervals", "simplify_views")
    ]
    assert sizes[0] < 1.05 * given[1].nbytes
    assert sizes[1] > 3 * given[1].nbytes


def test_counts_of_long_rows() -> None:
    """Counts of infinities in rows that are longer than half of 32 bits can count."""
    length = 1 << 16
    with compat.enable_x64(True):
        values = jnp.zeros(length).at[jnp.array([3, 40_000])].set(-jnp.inf).at[50_000].set(jnp.nan)
        counts = lower_intervals._counted(values.at[60_000:].set(jnp.inf))
        assert counts.dtype == jnp.int64
        between = jnp.stack([counts[39_999] - counts[3], counts[45_000] - counts[3], counts[50_000] - counts[45_000]])
        between = jnp.append(between, counts[-1] - counts[50_000])
        found = lower_intervals._with_infinities(jnp.ones(4), between)
    assert [str(one) for one in found] == ["1.0", "-inf", "nan", "inf"]
