"""Arguments and results of every kind: views, shared memory, layouts, empty, 0-d and complex tensors, no tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.cases.harness import check

Tensor = torch.Tensor


def channels_last() -> Tensor:
    return torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)


def in_place_on_views(x: Tensor) -> tuple[Tensor, Tensor]:
    """Writes through views of views, of a value and of an argument."""
    y = x * 2
    y[1:].t()[0].add_(1)
    y.view(-1)[::2].mul_(3)
    x.t()[1:].zero_()
    x.diagonal().fill_(7)
    return y, x.sum(0)


def written_twice_and_returned(x: Tensor) -> tuple[Tensor, ...]:
    before = x.clone()
    x.add_(1)
    row = x[0]
    row.mul_(2)
    return x, row, before, x.view(-1), x.detach()


def out_argument(x: Tensor) -> Tensor:
    out = torch.empty(3, 2)
    torch.add(x, 1, out=out)
    return out


def shared_arguments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x.add_(1)
    y.mul_(2)
    return x + y, y


def overlapping() -> tuple[Tensor, Tensor]:
    base = torch.randn(6)
    return base[:4], base[2:]


def same() -> tuple[Tensor, Tensor]:
    base = torch.randn(3)
    return base, base


CASES: dict[str, tuple[Callable[..., Any], Callable[[], Sequence[Any]]]] = {
    "views of an argument": (
        lambda x: (x[1:], x.t(), x.view(-1)[::2], x.unfold(0, 2, 1), x.expand(2, 3, 3), x.diagonal(), x.detach()),
        lambda: (torch.randn(3, 3),),
    ),
    "argument among the results, twice": (lambda x, y: (x, y + 1, x, y), lambda: (torch.randn(3), torch.randn(3))),
    "in place on views": (in_place_on_views, lambda: (torch.randn(3, 3),)),
    "written and returned": (written_twice_and_returned, lambda: (torch.randn(3, 2),)),
    "out argument": (out_argument, lambda: (torch.randn(3, 2),)),
    "arguments that overlap": (shared_arguments, lambda: tuple(x[:2] for x in overlapping())),
    "one argument twice": (shared_arguments, same),
    "list and dictionary": (lambda x: [x[0] + 1, {"a": x[1]["b"] * 2}], lambda: ([torch.ones(2), {"b": torch.ones(3)}],)),
    "numbers and nothing": (lambda x, n, f, s, b: (x * n + f, n + 1, None, s, b, f * 2), lambda: (torch.ones(2), 3, 0.5, "a", True)),
    "no tensors at all": (lambda: torch.arange(4) * 2, lambda: ()),
    "0-d": (lambda x, n: (x * n, x.reshape(1), n + 1, x.expand(3)), lambda: (torch.tensor(2.5), torch.tensor(3))),
    "empty": (
        lambda x: (x + 1, x.sum(), x.sum(0), torch.cat([x, x]), x @ x.new_ones(3, 0), x.t(), x.any()),
        lambda: (torch.empty(0, 3),),
    ),
    "empty inner dimension": (lambda x: (x @ x.t(), x.prod(1), x.view(0)), lambda: (torch.empty(2, 0),)),
    "complex": (
        lambda z: (z * 2j, z.conj(), z.real, z.imag, torch.view_as_real(z), z.abs(), z @ z.mH),
        lambda: (torch.randn(2, 2, dtype=torch.complex64),),
    ),
    "conjugated and negated arguments": (
        lambda z, n: (z + 1, n * 2),
        lambda: (torch.randn(3, dtype=torch.complex64).conj(), torch.randn(3, dtype=torch.complex64).conj().imag),
    ),
    "channels last": (lambda x: (x * 2, x.sum(1), x[:, :2], x.contiguous(), x.permute(0, 2, 3, 1)), lambda: (channels_last(),)),
    "expanded argument": (lambda x: (x + 1, x.sum(0), x.t()), lambda: (torch.randn(1, 3).expand(4, 3),)),
    "argument with gaps": (lambda x: (x + 1, x[0], x.clone()), lambda: (torch.randn(4, 6)[::2, 1::2],)),
    "large strides of dimensions of one": (lambda x: (x + 1, x.t()), lambda: (torch.randn(4).as_strided((1, 4), (77, 1)),)),
}  # fmt: skip


@pytest.mark.parametrize("function, make_arguments", CASES.values(), ids=CASES)
def test_arguments_and_results(function: Callable[..., Any], make_arguments: Callable[[], Sequence[Any]]) -> None:
    check(function, make_arguments)
