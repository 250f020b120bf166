"""Whose memory is whose: results, mutated arguments that share storages, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


def test_results_alias_only_what_eager_aliases(compiled: Callable[..., Any]) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.clone(), x * 1, x.t().clone(), x, x.view(-1), x + 0

    run = compiled(function)
    for position in range(6):
        for _ in range(3):
            x = torch.arange(6.0).view(2, 3)
            y = x.clone()
            mine, theirs = run(x), function(y)
            mine[position].fill_(9)
            theirs[position].fill_(9)
            torch.testing.assert_close((x, *mine), (y, *theirs))


def test_writing_to_a_result_changes_nothing_on_the_device(compiled: Callable[..., Any]) -> None:
    constant = torch.ones(3)

    def function(x: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache.copy_(x)
        return constant.clone(), cache.clone(), cache * 1

    run, cache = compiled(function), torch.zeros(3)
    for value in range(4):
        results = run(torch.full((3,), float(value)), cache)
        assert [result.tolist() for result in results] == [[1] * 3, [value] * 3, [value] * 3]
        for result in results:
            result.fill_(9)
    assert cache.tolist() == [3] * 3 and constant.tolist() == [1] * 3


def test_one_value_written_to_two_arguments(compiled: Callable[..., Any]) -> None:
    """Each keeps a buffer of its own on the device, that the next call may overwrite."""

    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        y = first + second + x
        first.copy_(y)
        second.copy_(y)
        return y

    run = compiled(function)
    mine, theirs = [torch.ones(4), torch.ones(4)], [torch.ones(4), torch.ones(4)]
    for _ in range(4):
        x = torch.randn(4)
        torch.testing.assert_close(run(x, *mine), function(x, *theirs))
        torch.testing.assert_close(mine, theirs)


def test_an_argument_written_with_another_argument(compiled: Callable[..., Any]) -> None:
    """The new value of one argument is the buffer of another, which stays on the device."""

    def function(weight: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.copy_(weight)
        return cache + 1

    def change(weight: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.add_(1)
        return cache + weight

    weight, cache = torch.nn.Parameter(torch.ones(4), requires_grad=False), torch.zeros(4)
    first, second = compiled(function), compiled(change)
    for _ in range(3):
        first(weight, cache)
        assert second(weight, cache).tolist() == [3] * 4
        assert cache.tolist() == [2] * 4 and weight.tolist() == [1] * 4


def test_arguments_that_share_a_storage(compiled: Callable[..., Any]) -> None:
    """A write through one argument shows in every other; also where version counters differ, as with ``data``."""

    def write(first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        first.add_(x)
        return first * 2

    def read(second: torch.Tensor) -> torch.Tensor:
        return second * 3

    writing, reading = compiled(write), compiled(read)
    mine, theirs = torch.zeros(4, 4), torch.zeros(4, 4)
    views = [lambda t: t[1:3], lambda t: t.view(-1), lambda t: t.data, lambda t: t.t(), lambda t: t.detach()]
    aliases = [[view(whole) for view in views] for whole in (mine, theirs)]
    for round_ in range(4):
        for mine_alias, their_alias in zip(*aliases, strict=True):
            for _ in range(2):
                torch.testing.assert_close(reading(mine_alias), read(their_alias))
            x = torch.full((), float(round_ + 1))
            torch.testing.assert_close(writing(mine, x), write(theirs, x))
            torch.testing.assert_close(writing(mine_alias, x), write(their_alias, x))
            torch.testing.assert_close(reading(mine), read(theirs))
            torch.testing.assert_close(reading(mine_alias), read(their_alias))
            torch.testing.assert_close(mine, theirs)


def test_a_write_shows_in_a_parameter_with_a_counter_of_its_own(compiled: Callable[..., Any]) -> None:
    whole = torch.zeros(4)
    weight = torch.nn.Parameter(whole.data.view(2, 2), requires_grad=False)
    assert weight.untyped_storage() is whole.untyped_storage() and weight._version == whole._version == 0
    write, read = compiled(lambda x: x.add_(1)), compiled(lambda: weight * 2)
    for step in range(3):
        assert read().tolist() == [[2 * step] * 2] * 2
        write(whole)
        assert weight._version == 0


def test_one_tensor_that_a_program_writes_and_reads(compiled: Callable[..., Any], programs: list[Any]) -> None:
    """AOTAutograd merges such arguments, so the program is called without it. What it donates nobody else holds."""

    def function(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        double = x * 2
        return out.add_(double).sum()

    run = compiled(function)
    run(torch.ones(4), torch.ones(4))
    programs[0].slots.ahead = [0, 0]  # nobody advances version counters before these calls
    run_arrays = programs[0].compiled

    def run_distinct(*arrays: Any) -> Any:
        assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays)
        return run_arrays(*arrays)

    programs[0].compiled = run_distinct
    both = torch.ones(4)
    for step in range(3):
        (total,) = programs[0]([both, both])[:1]
        assert both.tolist() == [3.0 ** (step + 1)] * 4 and total == both.sum()


def test_overlapping_arguments_of_one_call(compiled: Callable[..., Any]) -> None:
    def function(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        part.add_(1)
        return whole * 2

    run, mine, theirs = compiled(function), torch.zeros(6), torch.zeros(6)
    for _ in range(4):
        torch.testing.assert_close(run(mine, mine[2:4]), function(theirs, theirs[2:4]))
        torch.testing.assert_close(mine, theirs)


def test_mutated_arguments_that_are_not_dense(compiled: Callable[..., Any]) -> None:
    def function(x: torch.Tensor, out: torch.Tensor) -> None:
        out.mul_(2).add_(x)

    run = compiled(function)
    for make in (lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[1:]):
        mine, theirs = torch.ones(4, 4), torch.ones(4, 4)
        for _ in range(4):
            run(torch.ones(()), make(mine)), function(torch.ones(()), make(theirs))
            torch.testing.assert_close(mine, theirs)


def test_threads(compiled: Callable[..., Any]) -> None:
    """Threads share a function and its parameters; each has inputs, and a cache, of its own."""
    weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def function(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache.add_(x @ weight)
        return cache.sum(0)

    run = compiled(function)
    run(torch.randn(4, 8), torch.zeros(4, 8))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        mine, theirs = torch.zeros(4, 8), torch.zeros(4, 8)
        try:
            for _ in range(100):
                x = torch.randn(4, 8, generator=generator)
                torch.testing.assert_close(run(x, mine), function(x, theirs), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
