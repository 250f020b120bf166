"""Dropout: what is kept and how it is scaled; the same in a backward, also where that computes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint

from tests.random.sources import compiled, seeded

F = torch.nn.functional
MODES = pytest.mark.parametrize("mode", ["jax", "torch"])
P = 0.3


@MODES
def test_kept_values_are_scaled_and_as_many_as_they_should_be(mode: str) -> None:
    x = torch.full((200, 100), 2.0)
    (y,), _ = seeded(0, compiled(lambda x: F.dropout(x, P), mode), x)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full((int(kept.sum()),), 2.0 / (1 - P)))
    assert abs(kept.double().mean() - (1 - P)) < 5 * (P * (1 - P) / x.numel()) ** 0.5


@MODES
def test_whole_channels_are_dropped(mode: str) -> None:
    (y,), _ = seeded(0, compiled(lambda x: F.dropout2d(x, 0.5), mode), torch.ones(8, 32, 3, 3))
    channels = y.flatten(2)
    assert bool((channels == channels[..., :1]).all())
    assert 0 < channels[..., 0].count_nonzero() < 256


@MODES
def test_alpha_dropout_keeps_mean_and_variance(mode: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(100_000)
    (y,), _ = seeded(0, compiled(lambda x: F.alpha_dropout(x, P, training=True), mode), x)
    assert abs(y.mean()) < 0.02
    assert abs(y.var() - 1) < 0.03


@MODES
def test_eval_training_and_bounds_of_p(mode: str) -> None:
    layer = torch.nn.Dropout(0.5)
    run = compiled(layer, mode)
    x = torch.randn(64)
    assert not torch.equal(run(x), x)
    layer.eval()
    assert torch.equal(run(x), x)
    assert torch.equal(compiled(lambda x: F.dropout(x, 0.0), mode)(x), x)
    assert torch.equal(compiled(lambda x: F.dropout(x, 1.0), mode)(x), torch.zeros(64))


def test_attention_drops_probabilities() -> None:
    """With equal scores every probability is 1/n: a result counts what was kept."""
    n = 256
    q, v = torch.zeros(1, 1, n, 8), torch.ones(1, 1, n, 8)
    (y,), _ = seeded(0, compiled(lambda q, v: F.scaled_dot_product_attention(q, q, v, dropout_p=P)), q, v)
    kept = y[0, 0, :, 0] * n * (1 - P)
    torch.testing.assert_close(kept, kept.round())
    assert abs(kept.mean() / n - (1 - P)) < 5 * (P * (1 - P)) ** 0.5 / n
    assert kept.unique().numel() > 10


@MODES
def test_a_gradient_goes_where_the_forward_kept(mode: str) -> None:
    x = torch.ones(50, 50, requires_grad=True)
    run = compiled(lambda x: F.dropout(x * 3, P) * 2, mode, verify=True)
    y = run(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert 0 < y.count_nonzero() < y.numel()
    torch.testing.assert_close(gradient, y.detach())


KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "dropout": lambda x: F.dropout(x, P),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn": lambda x: x * torch.randn(x.shape),
    "randint": lambda x: x * torch.randint(1, 1000, x.shape),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full(x.shape, 0.5)),
    "uniform_": lambda x: x * torch.empty_like(x).uniform_(1, 2),
    "randperm": lambda x: x[torch.randperm(x.shape[0])] * 3,
}


def checkpointed(x: torch.Tensor, kind: str) -> torch.Tensor:
    y = checkpoint(lambda x: KINDS[kind](x * 2), x, use_reentrant=False)
    return y.square() * torch.arange(1, y.numel() + 1).reshape(y.shape)


@pytest.mark.sweep
@MODES
def test_a_checkpointed_block_draws_the_same_again(mode: str) -> None:
    """Of a result that is quadratic in x, the gradient times x sums to twice its sum: if both drew the same numbers."""

    def model(*xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(checkpointed(x, kind) for x, kind in zip(xs, KINDS, strict=True))

    torch.manual_seed(2)
    xs = [torch.rand(32, 8).add(0.5).requires_grad_() for _ in KINDS]
    run = compiled(model, mode, verify=True)
    for _ in range(2):
        for kind, x, y in zip(KINDS, xs, run(*xs), strict=True):
            (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            assert_sums_agree(kind, (gradient * x).sum(), 2 * y.sum())


def assert_sums_agree(kind: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, msg=lambda text: f"{kind}: {text}")


def test_checkpointing_saves_keys_and_no_values() -> None:
    """The program of the backward takes saved states and draws; it is given no mask."""
    import tpu_lowering

    def model(x: torch.Tensor) -> torch.Tensor:
        return checkpointed(x, "dropout")

    report = tpu_lowering.explain(model, torch.rand(8, 8, requires_grad=True))
    assert [draw.program.partition("_")[0] for draw in report.draws] == ["forward", "backward"]
    assert {draw.operator for draw in report.draws} == {"aten.bernoulli.p"}


@pytest.mark.sweep
@MODES
def test_checkpointing_with_dynamic_sizes(mode: str) -> None:
    run = compiled(lambda x: checkpointed(x, "dropout"), mode, dynamic=True)
    for size in (4, 7):
        x = torch.rand(size, 8).add(0.5).requires_grad_()
        y = run(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient * x.detach(), 2 * y.detach())


@pytest.mark.sweep
@MODES
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_backward_under_a_memory_budget_draws_the_same_again(mode: str, dynamic: bool) -> None:
    """What the partitioner has the backward compute again, with no ``checkpoint``: a draw is repeated, never made anew.

    Of a result that is linear in x along a fixed draw, the gradient times x sums to the result's sum.
    """

    def model(w: torch.Tensor, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        drawn = (KINDS[kind](torch.relu(x @ w)) for kind, x in zip(KINDS, xs, strict=True))
        inside = checkpoint(lambda x: F.dropout(torch.relu(x @ w), 0.25) @ w, xs[0], use_reentrant=False)
        return (*(y @ w for y in drawn), F.dropout(xs[0] * 2, P), inside)

    torch.manual_seed(3)
    w = torch.randn(16, 16, dtype=torch.float64)
    for budget in (0.0,) if dynamic else (0.4, 0.0):
        torch._dynamo.reset()
        with functorch_config.patch(activation_memory_budget=budget):
            run = compiled(model, mode, dynamic=dynamic)
            for rows in (16, 12) if dynamic else (16,):
                xs = [torch.randn(rows, 16, dtype=torch.float64).requires_grad_() for _ in KINDS]
                results = run(w, *xs)
                gradients = torch.autograd.grad([y.sum() for y in results], xs)
                found = sum((g * x).sum() for g, x in zip(gradients, xs, strict=True))
                assert_sums_agree(f"budget {budget}", found, sum(y.sum() for y in results))
