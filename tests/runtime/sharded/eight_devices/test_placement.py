"""What is on which device, and when it moves there."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import pytest
import torch

from tests.runtime.sharded.eight_devices.conftest import sharded
from tests.runtime.sharded.llama import SHARDINGS, Llama, batch


def bytes_by_device(shape: tuple[int, ...]) -> set[tuple[int, int]]:
    """Of arrays of a shape: how many devices have some of one, and how many bytes each of them."""
    gc.collect()
    found = {shard.data.unsafe_buffer_pointer(): array for array in jax.live_arrays() if array.shape == shape
             for shard in array.addressable_shards}  # fmt: skip
    return {(len(array.addressable_shards), array.addressable_shards[0].data.nbytes) for array in found.values()}


def test_parameters_move_once_and_stay_split(moves: Any) -> None:
    model = Llama(inner=48)
    run = sharded(model, SHARDINGS)
    with torch.no_grad():
        assert moves.of(run, *batch(0)) == 21 + 2
        P = jax.sharding.PartitionSpec
        assert sorted(map(str, moves.specs)).count(str(P("model"))) == 12
        assert [moves.of(run, *batch(step)) for step in range(1, 20)] == [2] * 19
        assert bytes_by_device((48, 32)) == {(8, 24 * 32 * 4)}  # gate and up: the half of the rows on each
        assert bytes_by_device((32, 48)) == {(8, 32 * 24 * 4)}
        model.lm_head.weight.mul_(2)
        assert moves.of(run, *batch(0)) == 3
        torch.testing.assert_close(run(*batch(0)), model(*batch(0)), rtol=1e-5, atol=1e-5)


def test_training_moves_updated_parameters_and_nothing_saved_that_lies_in_rows(moves: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    run = sharded(model, {"input": ("data",), "0.weight": ("model",), "2.weight": (None, "model")})
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        losses: list[torch.Tensor] = []
        x = torch.randn(8, 8)
        assert moves.of(lambda x=x, losses=losses: losses.append(run(x).sum())) == 5
        torch.testing.assert_close(losses[0], model(x).sum())
        assert moves.of(losses[0].backward) == 1  # the gradient of the result
        optimizer.step()


def test_a_gradient_comes_in_as_the_result_left(moves: Any, programs: Any) -> None:
    model = torch.nn.Linear(8, 16, bias=False)
    sharded(model, {"input": ("data",), "weight": ("model",)})(torch.randn(8, 8)).sum().backward()
    assert [lies.spec for lies in programs[0].compiled.output_shardings][:1] == [moves.specs[-1]]
    assert moves.specs[-1] == jax.sharding.PartitionSpec("data", "model")


def test_a_buffer_that_is_written_stays_split(moves: Any, programs: Any) -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(16))
            self.total: torch.Tensor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            return self.total * 2

    model = Counting()
    run = sharded(model, {"total": ("data",), "x": ("data",)})
    with torch.no_grad():
        counts = [moves.of(lambda: torch.testing.assert_close(run(torch.ones(16)), model.total * 2)) for _ in range(4)]
    assert counts == [2, 1, 1, 1] and model.total.tolist() == [4] * 16
    assert programs[0].compiled.output_shardings[-1].spec == jax.sharding.PartitionSpec("data")
    assert "input_output_alias={ {1}" in programs[0].compiled.as_text()


def test_two_tables_share_what_lies_alike(moves: Any) -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8))
    x = torch.randn(8, 8)
    with torch.no_grad():
        for table, moved in (({"weight": ("model",)}, 2), ({"weight": ("model", None)}, 1), ({"weight": ("data",)}, 2)):
            torch._dynamo.reset()
            run = sharded(lambda x: x @ weight, table)
            assert moves.of(lambda run=run: torch.testing.assert_close(run(x.clone()), x @ weight)) == moved


def test_every_axis_at_one_dimension_and_a_result_on_all(programs: Any) -> None:
    x = torch.randn(16, 4)
    result = sharded(lambda x: (x * 2, x.sum()), {"x": (("data", "model"), None)})(x)
    torch.testing.assert_close(result, (x * 2, x.sum()))
    assert programs[0].slots.shardings[0].spec == jax.sharding.PartitionSpec(("data", "model"))


def test_random_values_are_those_of_one_device() -> None:
    torch.manual_seed(3)
    expected = torch.compile(torch.rand_like, backend="helion_tpu")(torch.ones(8, 4))
    torch._dynamo.reset()
    torch.manual_seed(3)
    assert torch.equal(sharded(lambda x: torch.rand_like(x), {"x": ("data",)})(torch.ones(8, 4)), expected)


class Function(torch.nn.Module):
    """A module that calls one, which is named in the table."""

    def __init__(self, inner: Callable[..., Any], outer: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.outer = Inner(inner), outer

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.inner(x))


class Inner(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


VIEWS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "a view of an argument": (lambda x: x.view(-1), lambda y: y),
    "written through": (lambda x: x.view(-1), lambda y: y.add_(1)),
    "a view of the result": (lambda x: (x * 2).view(-1), lambda y: (y, y.view(8, 4))),
    "two views of one value": (lambda x: ((y := x * 2), y.view(-1)), lambda y: y),
    "a value and its view, written": (lambda x: ((y := x * 2), y.view(-1)), lambda y: (y[0].add_(1), y[1])),
}


@pytest.mark.parametrize(("inner", "outer"), VIEWS.values(), ids=VIEWS.keys())
def test_results_share_memory_as_in_eager(inner: Any, outer: Any) -> None:
    def sharing(x: torch.Tensor, results: Any) -> list[int]:
        values = [x, *(results if isinstance(results, tuple) else (results,))]
        places = [value.untyped_storage().data_ptr() for value in values]
        return [places.index(place) for place in places]

    model, x, y = Function(inner, outer), torch.arange(32.0).view(8, 4), torch.arange(32.0).view(8, 4)
    results, expected = sharded(model, {"inner": ("data",)})(x), model(y)
    torch.testing.assert_close((results, x), (expected, y))
    assert sharing(x, results) == sharing(y, expected)


def test_a_cache_keeps_nothing_of_it(tmp_path: pathlib.Path) -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8))
    run = sharded(lambda x: (x @ weight).sum(), {"weight": ("model",)}, cache=str(tmp_path))
    x = torch.randn(8, 8)
    torch.testing.assert_close(run(x), (x @ weight).sum())
    run(x).backward()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_statistics_of_a_batch() -> None:
    model, twin = torch.nn.BatchNorm1d(16), torch.nn.BatchNorm1d(16)
    run = sharded(model, {"weight": ("model",), "running_mean": ("model",), "input": ("data", "model")})
    for _ in range(3):
        x = torch.randn(8, 16)
        results = [forward(x).square().sum() for forward in (run, twin)]
        torch.testing.assert_close(*results)
        for result in results:
            result.backward()
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    torch.testing.assert_close(model.weight.grad, twin.weight.grad, rtol=1e-4, atol=1e-5)
