"""Numbers that no shape needs are inputs of a program: one program for all of them, whatever they are used for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tpu_lowering.backend import helion_tpu

Make = Callable[[], tuple[torch.Tensor, ...]]


def row() -> tuple[torch.Tensor]:
    return (torch.randn(4),)


def table() -> tuple[torch.Tensor]:
    return (torch.randn(4, 60),)


def cache() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 60), torch.randn(4)


def integers() -> tuple[torch.Tensor]:
    return (torch.arange(4),)


def written(c: torch.Tensor, k: torch.Tensor, t: int) -> torch.Tensor:
    c[:, t : t + 2] = k[:, None]
    return c * 1


def written_one(c: torch.Tensor, k: torch.Tensor, t: int) -> torch.Tensor:
    c.select(1, t).copy_(k)
    return c * 1


def shared(c: torch.Tensor, k: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    copied = c.t() * 1
    copied[t : t + 1] = k
    return copied, copied[3]


def decode(x: torch.Tensor, t: int) -> torch.Tensor:
    """A position in a mask, an angle and a scale at once."""
    angle = t / 100.0 ** (torch.arange(4) / 4)
    seen = x.masked_fill(torch.arange(60)[None] > t, -1e9).softmax(-1)
    return seen * angle.sin()[:, None] + x.narrow(1, t, 1) * (t % 7) - t // 2


USES: dict[str, tuple[Callable[..., Any], Make]] = {
    "product": (lambda x, t: x * t + x / t - t, row),
    "arithmetic": (lambda x, t: x * t**2 + (t // 3) + (t % 4) * x + x * (t / 7) + t**0.5, row),
    "integers": (lambda x, t: x * t + (t + 2**40), integers),
    "comparison": (lambda x, t: torch.where(torch.arange(4) + 40 < t, x, x * (x > t)), row),
    "mask": (lambda x, t: x.masked_fill(torch.arange(60)[None] > t, -1e9).softmax(-1), table),
    "select": (lambda x, t: x.select(1, t) * 2, table),
    "from the end": (lambda x, t: x.select(1, -t) * 2, table),
    "narrow": (lambda x, t: x.narrow(1, t, 4) + 1, table),
    "slice": (lambda x, t: x.t()[t : t + 6 : 2].exp(), table),
    "fill": (lambda x, t: torch.full((4,), t) + x + torch.full((4,), float(t)) + torch.tensor(t), row),
    "power": (lambda x, t: x.abs() ** t, row),
    "remainders": (lambda x, t: x // t + x % t + torch.fmod(x, t), row),
    "positions": (lambda x, t: x * torch.arange(t, t + 4), row),
    "bound": (lambda x, t: (x * 99).clamp(max=t) + (x * 99).clamp(min=t), row),
    "index_copy": (lambda c, k, t: c.index_copy(1, torch.tensor([t]), k[:, None]), cache),
    "written": (written, cache),
    "written one": (written_one, cache),
    "a result that is a number": (lambda x, t: (x * t, t + 1), row),
    "decode": (decode, table),
    "fills of its own": (lambda x, t: (torch.full((4, 5), t), torch.arange(t, t + 4)), row),
    "results that share memory": (shared, cache),
}


class Counter:
    """Counts programs."""

    def __init__(self) -> None:
        self.programs = 0

    def stage(self, program: str, stage: str, module: Any, seconds: float) -> None: ...

    def acted(self, program: str, name: str, actions: Any) -> None: ...

    def compiled(self, program: Any, source: Any) -> None:
        self.programs += 1


def run(function: Callable[..., Any], make: Make, numbers: list[Any], **options: Any) -> int:
    """Compares calls with eager, mutated arguments too; how many programs were compiled."""
    torch._dynamo.reset()
    counter = Counter()

    def backend(module: Any, examples: Any) -> Any:
        return helion_tpu(module, examples, observers=[counter], options=options)

    compiled = torch.compile(function, backend=backend)
    for number in numbers:
        mine = make()
        own = tuple(value.clone() for value in mine)
        found, wanted = compiled(*mine, number), function(*own, number)
        torch.testing.assert_close((found, mine), (wanted, own), check_stride=True)
        tensors = [
            [v for v in r if isinstance(v, torch.Tensor)] if isinstance(r, tuple) else [r] for r in (found, wanted)
        ]
        memory = [[value.untyped_storage().data_ptr() for value in values] for values in tensors]
        assert len(set(memory[0])) == len(set(memory[1]))
    return counter.programs


@pytest.mark.parametrize("use", USES)
def test_fifty_numbers_are_two_programs(use: str) -> None:
    assert run(*USES[use], [5, 6, *range(2, 50)]) <= 3


@pytest.mark.parametrize("function", [
    lambda x, t: x[:, :t].sum(),
    lambda x, t: torch.zeros(t) + x.sum(),
    lambda x, t: torch.add(x, x, alpha=t),
    lambda x, t: x.as_strided((4,), (1,), t) * 2,
])  # fmt: skip
def test_what_needs_the_number_is_compiled_for_it(function: Callable[..., Any]) -> None:
    assert run(function, table, [5, 6, 7, 8]) == 4


def test_several_numbers_of_which_a_shape_needs_one() -> None:
    """Programs are as many as there are lengths."""

    def function(x: torch.Tensor, at: tuple[int, int]) -> torch.Tensor:
        t, n = at
        return x[:, :n] * t + n

    numbers = [(t, n) for t in range(5, 15) for n in (20, 30, 40)]
    assert run(function, table, numbers) <= 6


def test_numbers_with_gradients() -> None:
    def function(x: torch.Tensor, t: int) -> torch.Tensor:
        return (x.requires_grad_().sin() * t).narrow(0, t % 3, 2).sum() + t

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="helion_tpu")
    for t in range(5, 12):
        (x,) = row()
        own = x.clone()
        (mine,), (wanted,) = torch.autograd.grad(compiled(x, t), x), torch.autograd.grad(function(own, t), own)
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize(
    "options", [{"verify": True, "poison": True}, {"buckets": "power_of_two"}, {"random": "torch"}]
)
def test_numbers_with_other_options(options: dict[str, Any]) -> None:
    run(USES["decode"][0], table, [5, 6, 7, 9], **options)


def test_a_type_that_lacks_numbers_is_compiled_for_each() -> None:
    """Eager refuses to clamp a float16 at 100000: what a call does depends on the number itself."""
    assert run(lambda x, t: x.to(torch.float16).clamp(max=t) * 2, row, [5, 6, 7, 8]) == 4
