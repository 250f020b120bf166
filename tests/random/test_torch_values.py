"""``random="torch"``: the values, and the generator's state after them, are eager's bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.random.sources import compiled, seeded

F = torch.nn.functional
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def made() -> tuple[Any, ...]:
    return (
        torch.rand(5, 7),
        torch.rand(3, dtype=torch.float64),
        torch.rand(6, dtype=torch.complex64),
        torch.randn(4, 100),
        torch.randn(7, dtype=torch.bfloat16),
        torch.randint(9, (4, 5)),
        torch.randint(-5, 2**40, (50,)),
        torch.randint(0, 256, (50,), dtype=torch.uint8),
        torch.randperm(40),
        torch.randperm(9, dtype=torch.int32),
        torch.normal(2.0, 3.0, (20,)),
    )


def like(x: torch.Tensor) -> tuple[Any, ...]:
    return torch.rand_like(x), torch.randn_like(x), torch.randint_like(x, 9), torch.randint_like(x, -3, 9)


def filled(x: torch.Tensor) -> tuple[Any, ...]:
    e = torch.empty_like(x)
    return (
        e.clone().uniform_(-1, 2),
        e.clone().normal_(1, 2),
        e.clone().exponential_(3),
        e.clone().geometric_(0.3),
        e.clone().log_normal_(),
        e.clone().cauchy_(),
        e.clone().bernoulli_(0.3),
        e.clone().bernoulli_(x),
    )


def of_tensors(x: torch.Tensor) -> tuple[Any, ...]:
    return (
        torch.bernoulli(x),
        torch.bernoulli(x, 0.3),
        x.multinomial(3),
        x.multinomial(1),
        x.multinomial(20, replacement=True),
    )


def dropouts(x: torch.Tensor) -> tuple[Any, ...]:
    image = x.reshape(4, 25, 2, 2)
    return F.dropout(x, 0.3), F.dropout2d(image, 0.4), F.dropout(x, 1.0), F.dropout(x, 0.0), F.dropout(x, 0.2, False)


def in_place(x: torch.Tensor) -> torch.Tensor:
    x[::2].normal_()
    x[:, 1:3].uniform_()
    x.t()[2].exponential_()
    F.dropout(x[1], 0.5, inplace=True)
    return x


def equal(function: Callable[..., Any], make: Callable[[], tuple[Any, ...]] = tuple) -> None:
    run = compiled(function, "torch")
    for seed in (1, 2):
        ours, state = seeded(seed, run, *make())
        theirs, expected_state = seeded(seed, function, *make())
        for index, (mine, eager) in enumerate(zip(ours, theirs, strict=True)):
            assert mine.dtype == eager.dtype
            assert torch.equal(mine, eager), f"result {index}"
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("function", [like, filled, of_tensors, dropouts])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_eager_s(function: Callable[..., Any], dtype: torch.dtype) -> None:
    equal(function, lambda: (torch.linspace(0.05, 0.95, 400).reshape(4, 100).to(dtype),))


def test_normal_values_of_tensors_are_eager_s_but_for_rounding() -> None:
    """What is drawn is eager's; XLA may compute the product and the sum that follow as one operation."""

    def draw(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.normal(x, x), torch.normal(2.0, x), torch.normal(x, 2.0)

    x = torch.rand(4, 100)
    ours, state = seeded(1, compiled(draw, "torch"), x)
    theirs, expected_state = seeded(1, draw, x)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(state, expected_state)


def test_made_values_are_eager_s() -> None:
    equal(made)


@pytest.mark.parametrize("function", [like, in_place, lambda x: F.dropout(x, 0.3)])
def test_the_order_in_memory_is_eager_s(function: Callable[..., Any]) -> None:
    """Eager draws in the order of memory, and in another way where that is not row-major."""
    equal(function, lambda: (torch.ones(40, 8).t().contiguous().t(),))
    equal(function, lambda: (torch.ones(40, 16)[:, ::2],))


def test_attention_drops_what_eager_drops() -> None:
    """Sums of products may be rounded in another order; zeroed probabilities would differ by far more."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 8)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4, is_causal=True)

    (ours,), state = seeded(1, compiled(attend, "torch"), q, k, v)
    (theirs,), expected_state = seeded(1, attend, q, k, v)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(state, expected_state)


def test_a_model_in_training_computes_eager_s_gradients() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2)
    x = torch.randn(5, 3, 8)

    def gradients(run: Callable[..., Any]) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(4)
        return torch.autograd.grad(run(x).square().sum(), list(layer.parameters()))

    for mine, eager in zip(gradients(compiled(layer, "torch")), gradients(layer), strict=True):
        torch.testing.assert_close(mine, eager)
