"""What is moved to the device, counted: parameters once, updates noticed, written arguments not again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import jax
import pytest
import torch

SECOND = jax.devices("cpu")[1]


def linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))


def test_parameters_are_moved_once(compiled: Callable[..., Any], moves: Any) -> None:
    model = linear()
    run = compiled(model)
    with torch.no_grad():
        assert moves.of(run, torch.randn(2, 8)) == 5
        assert [moves.of(run, torch.randn(2, 8)) for _ in range(50)] == [1] * 50
        assert set(moves.devices) == {SECOND}
        model[0].weight.add_(1)
        x = torch.randn(2, 8)
        assert moves.of(run, x) == 2
        torch.testing.assert_close(run(x), model(x))
        model[1].bias.data = torch.full((4,), 7.0)
        x = torch.randn(2, 8)
        assert moves.of(run, x) == 2
        torch.testing.assert_close(run(x), model(x))


def test_buffers_are_moved_once(compiled: Callable[..., Any], moves: Any) -> None:
    model = torch.nn.BatchNorm1d(4, affine=False).eval()
    run = compiled(model)
    assert [moves.of(run, torch.randn(2, 4)) for _ in range(3)] == [3, 1, 1]


def test_programs_share_what_is_on_the_device(compiled: Callable[..., Any], moves: Any) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    first, second = compiled(lambda x: x @ weight), compiled(lambda x: x @ weight + 1)
    with torch.no_grad():
        first(torch.randn(2, 4))
        assert moves.of(second, torch.randn(2, 4)) == 1


@pytest.mark.parametrize("rule", ["SGD", "Adam", "Adam foreach", "Adam fused", "SGD fused"])
def test_optimizer_steps_are_noticed(rule: str, compiled: Callable[..., Any], moves: Any) -> None:
    """Fused optimizers do not advance torch's version counter."""
    name, _, how = rule.partition(" ")
    model = linear()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, **({how: True} if how else {}))
    run = compiled(model)
    for _ in range(3):
        x = torch.randn(2, 8)
        losses: list[torch.Tensor] = []
        assert moves.of(lambda x=x, losses=losses: losses.append(run(x).sum())) == 5
        torch.testing.assert_close(losses[0], model(x).sum())
        assert moves.of(losses[0].backward) == 1  # the gradient of the result; the rest is there
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        x = torch.randn(2, 8)
        torch.testing.assert_close(run(x), model(x))


def test_frozen_parameters_stay_during_training(compiled: Callable[..., Any], moves: Any) -> None:
    model = linear()
    model[0].requires_grad_(False)
    run = compiled(model)
    counts: list[int] = []
    for _ in range(3):
        counts.append(moves.of(lambda: run(torch.randn(2, 8)).sum().backward()))
    assert counts == [6, 4, 4]  # two trained parameters, the input and the gradient


def test_plain_arguments_are_kept_when_they_come_again(compiled: Callable[..., Any], moves: Any) -> None:
    run, x, y = compiled(lambda x, w: x * w), torch.randn(4), torch.randn(4)
    table = torch.randn(4)
    assert [moves.of(run, torch.randn(4), table) for _ in range(4)] == [2, 2, 1, 1]
    assert [moves.of(run, value, table) for value in (x, y, x, y)] == [1, 1, 1, 1]
    table[0] = 5
    assert moves.of(run, x, table) == 2
    torch.testing.assert_close(run(x, table), x * table)


MODES = {"gradients on": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def write(cache: torch.Tensor, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    cache.index_copy_(0, position, x[None])
    return cache.sum(0)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_cache_is_moved_in_once(mode: Callable[..., Any], compiled: Callable[..., Any], moves: Any) -> None:
    run, cache, twin = compiled(write), torch.zeros(16, 8), torch.zeros(16, 8)
    counts: list[int] = []
    with mode():
        for step in range(12):
            x, position = torch.randn(8), torch.tensor([step])
            results: list[torch.Tensor] = []
            counts.append(
                moves.of(lambda x=x, position=position, results=results: results.append(run(cache, x, position)))
            )
            torch.testing.assert_close(results[0], write(twin, x, position))
            torch.testing.assert_close(cache, twin)
            if step == 5:
                cache.mul_(2), twin.mul_(2)
            if step == 8:
                cache[0].zero_(), twin[0].zero_()
    assert counts == [3] + [2] * 5 + [3] + [2] * 2 + [3] + [2] * 2


def test_a_cache_made_in_inference_mode_has_no_version_and_is_moved(compiled: Callable[..., Any], moves: Any) -> None:
    run = compiled(write)
    with torch.inference_mode():
        cache, twin = torch.zeros(4, 8), torch.zeros(4, 8)
        for step in range(3):
            x, position = torch.randn(8), torch.tensor([step])
            assert moves.of(run, cache, x, position) == 3
            write(twin, x, position)
            torch.testing.assert_close(cache, twin)
            cache.add_(1), twin.add_(1)


def test_two_programs_write_one_cache(compiled: Callable[..., Any], moves: Any) -> None:
    def fill(cache: torch.Tensor, x: torch.Tensor) -> None:
        cache[: x.shape[0]] = x

    prefill, decode, cache, twin = compiled(fill), compiled(write), torch.zeros(16, 8), torch.zeros(16, 8)
    for _ in range(2):
        x = torch.randn(5, 8)
        prefill(cache, x), fill(twin, x)
        counts: list[int] = []
        for step in range(5, 8):
            x, position = torch.randn(8), torch.tensor([step])
            counts.append(moves.of(decode, cache, x, position))
            write(twin, x, position)
            torch.testing.assert_close(cache, twin)
        assert counts == [2, 2, 2]


def test_buffers_that_a_module_writes_stay(compiled: Callable[..., Any], moves: Any) -> None:
    model = torch.nn.BatchNorm1d(4, affine=False, track_running_stats=True)
    run = compiled(model)
    counts = [moves.of(run, torch.randn(8, 4)) for _ in range(4)]
    assert counts[1:] == [1] * 3


def test_memory_on_the_device_goes_with_the_tensors(compiled: Callable[..., Any]) -> None:
    def on_device() -> int:
        gc.collect()
        return len({a.unsafe_buffer_pointer() for a in jax.live_arrays() if a.shape == (63, 65)})

    def function(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.add_(x)
        return x.sum()

    run, weight = compiled(function), torch.nn.Parameter(torch.randn(63, 65), requires_grad=False)
    run(weight, torch.zeros(63, 65))
    assert on_device() == 1  # the parameter; the cache is gone, and its copy with it
    cache = torch.zeros(63, 65)
    for _ in range(3):
        run(weight, cache)
    assert on_device() == 2
    for _ in range(5):  # one slot holds one copy
        others = [torch.zeros(63, 65) for _ in range(4)]
        for other in others:
            run(weight, other)
    assert on_device() == 2
    del others, other, cache, weight
    assert on_device() == 0


def test_a_backward_may_run_again(compiled: Callable[..., Any]) -> None:
    x = torch.randn(4, 4, requires_grad=True)
    result = compiled(lambda x: (x.sin() @ x).sum())(x)
    first = torch.autograd.grad(result, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(result, x)[0])


def test_writes_that_torch_does_not_count_are_seen_once_announced(compiled: Callable[..., Any]) -> None:
    """What the documentation says of ``tensor.data``: the remedy works."""
    weight = torch.nn.Parameter(torch.ones(4))
    run = compiled(lambda x: x * weight)
    with torch.no_grad():
        run(torch.ones(4))
        weight.data.mul_(3)
        torch.autograd.graph.increment_version(weight)
        assert run(torch.ones(4)).tolist() == [3] * 4


def test_a_failing_call_loses_nothing(compiled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tpu_lowering.runtime import device

    run, cache = compiled(write), torch.zeros(4, 8)
    for step in range(2):
        run(cache, torch.ones(8), torch.tensor([step]))
    before = cache.clone()
    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
        patch.setattr(device, "write_back", lambda *_: (_ for _ in ()).throw(RuntimeError("lost")))
        run(cache, torch.ones(8), torch.tensor([2]))
    assert torch.equal(cache, before)
    result = run(cache, torch.ones(8), torch.tensor([3]))
    assert result.tolist() == [3] * 8 and cache.sum() == 24


def test_what_is_saved_transposed_stays_too(compiled: Callable[..., Any], moves: Any) -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        heads = (x @ weight).view(4, 6, 2, 4).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads.sin(), heads.cos()).transpose(1, 2)

    weights = [torch.randn(8, 8, requires_grad=True) for _ in range(2)]
    weights[1].data.copy_(weights[0])
    x = torch.randn(4, 6, 8)
    results = [compiled(function)(x, weights[0]), function(x, weights[1])]
    torch.testing.assert_close(*results, check_stride=True)
    assert moves.of(results[0].sum().backward) == 1  # the gradient of the result
    results[1].sum().backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad, rtol=1e-4, atol=1e-5)
