"""One Dynamo graph serves all sizes; programs are compiled for each set of sizes beneath it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import helion
import helion.language as hl
import jax.numpy as jnp
import pytest
import torch
from torch._dynamo.utils import counters

import tpu_lowering
from tests.dynamic.watch import Watch


def model(x: torch.Tensor) -> torch.Tensor:
    return (x.sin() * 2 + x.shape[0]).sum(1)


def check(run: Callable[..., Any], function: Callable[..., Any], *arguments: Any) -> None:
    torch.testing.assert_close(run(*arguments), function(*arguments), check_stride=True)


def test_a_second_size_makes_the_graph_dynamic() -> None:
    """The first size is compiled as it is; the second brings a graph for all further ones."""
    watch = Watch()
    run = watch.compile(model)
    for size in (4, 5, 6, 7, 5, 6):
        check(run, model, torch.randn(size, 3))
    assert watch.graphs == 2
    assert len(watch.programs) == 4  # 4 alone, then 5, 6 and 7 beneath one graph


def test_dynamic_true_captures_once_and_aot_autograd_runs_once() -> None:
    watch = Watch()
    counters.clear()
    run = watch.compile(model, dynamic=True)
    for size, columns in ((4, 3), (5, 3), (6, 2), (4, 3)):
        check(run, model, torch.randn(size, columns))
    assert watch.graphs == counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["total"] == counters["aot_autograd"]["ok"] == 1
    assert len(watch.programs) == 3


def test_marked_dimensions_are_dynamic_from_the_first_call() -> None:
    watch = Watch()
    run = watch.compile(model)
    x = torch.randn(4, 3)
    torch._dynamo.mark_dynamic(x, 0)
    for value in (x, torch.randn(5, 3), torch.randn(6, 3)):
        check(run, model, value)
    assert (watch.graphs, len(watch.programs)) == (1, 3)


def test_sizes_0_and_1_have_graphs_of_their_own() -> None:
    """Torch takes them apart from all others, because they broadcast or are empty."""
    watch = Watch()
    run = watch.compile(model, dynamic=True)
    for size in (3, 0, 1, 4, 0, 1):
        check(run, model, torch.randn(size, 2))
    assert (watch.graphs, len(watch.programs)) == (3, 4)


def test_forward_and_backward() -> None:
    watch = Watch()
    layer = torch.nn.Linear(3, 2)
    run = watch.compile(lambda x: layer(x).relu().sum() / x.shape[0], dynamic=True)
    for size in (4, 5, 6, 4):
        x = torch.randn(size, 3)
        loss = run(x)
        wanted = layer(x).relu().sum() / size
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(loss, list(layer.parameters())), torch.autograd.grad(wanted, list(layer.parameters()))
        )
    assert watch.graphs == 1
    assert (watch.of("forward"), watch.of("backward")) == (3, 3)


NUMBERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "arange": lambda x: torch.arange(x.shape[0]) * 2,
    "divisor": lambda x: x / x.shape[0],
    "doubled": lambda x: x.new_zeros(x.shape[0] * 2) + 1,
    "halved": lambda x: x[: x.shape[0] // 2],
    "power": lambda x: x * x.shape[1] ** 0.5,
    "condition": lambda x: x + 1 if x.shape[0] > 2 else x - 1,
    "result": lambda x: (x + 1, x.shape[0] * 3, x.shape),
    "filled": lambda x: torch.full((2, x.shape[0]), x.shape[1]),
    "flattened": lambda x: x.reshape(-1) + 1,
}


@pytest.mark.parametrize("function", NUMBERS.values(), ids=NUMBERS)
def test_sizes_used_as_values(function: Callable[[torch.Tensor], Any]) -> None:
    watch = Watch()
    run = watch.compile(function, dynamic=True)
    for size in (4, 5, 7):
        check(run, function, torch.randn(size, 3))
    assert watch.graphs == 1


@helion.kernel(config=helion.Config(block_sizes=[8, 8]), static_shapes=True, backend="pallas")
def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] * 2


@tpu_lowering.kernel_op("dynamic::negate_into", mutates_args=("out",))
def negate_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return jnp.negative(x)


def through_helion(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    double_into(x + 1, out)
    return out * x.shape[0]


def through_operator(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    negate_into(x + 1, out)
    return out * x.shape[0]


@pytest.mark.parametrize(
    ("function", "eager"),
    [(through_helion, lambda x: (x + 1) * 2 * x.shape[0]), (through_operator, lambda x: -(x + 1) * x.shape[0])],
    ids=["helion", "operator"],
)
def test_kernels_under_symbolic_sizes(function: Callable[..., Any], eager: Callable[..., Any]) -> None:
    watch = Watch()
    run = watch.compile(function)
    x = torch.randn(8, 16)
    torch._dynamo.mark_dynamic(x, 0)
    for value in (x, torch.randn(16, 16), torch.randn(24, 16)):
        torch.testing.assert_close(run(value), eager(value))
    assert (watch.graphs, len(watch.programs)) == (1, 3)


def test_mutated_inputs_of_any_size() -> None:
    watch = Watch()
    run = watch.compile(lambda x, y: y.add_(x).sum(), dynamic=True)
    for size in (3, 5, 4):
        x, y = torch.randn(size), torch.randn(size)
        wanted = y + x
        torch.testing.assert_close(run(x, y), wanted.sum())
        torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("options", [{}, {"buckets": 4}], ids=["exact", "buckets"])
def test_threads_share_one_graph(options: dict[str, Any]) -> None:
    """Each size is compiled once, whichever thread meets it first."""
    watch = Watch()
    run = watch.compile(model, dynamic=True, **options)
    run(torch.randn(4, 3))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for size in (5, 6, 7, 8, 9) * 3:
                check(run, model, torch.randn(size, 3, generator=generator))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(watch.programs) == (3 if options else 6)


def test_reasons_of_recompiles_are_logged_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO, logger="tpu_lowering.recompiles"):
        report = tpu_lowering.explain(model, torch.randn(4, 3), calls=[(torch.randn(5, 3),), (torch.randn(6, 3),)])
    guard, sizes = report.recompiles
    assert guard.code == "TL513" and "tensor 'x' size mismatch at index 0. expected 4, actual 5" in guard.reason
    assert (sizes.code, sizes.reason) == ("TL512", "L['x'].size()[0] was 5, is 6")
    assert "Compiled again" in str(report) and "buckets" in sizes.remedy
    logged = [record.getMessage() for record in caplog.records if record.name == "tpu_lowering.recompiles"]
    assert logged == [f"{one.program}: {one.code} {one.reason}" for one in report.recompiles]
