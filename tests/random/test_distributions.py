"""Distributions of the program's own draws, by Kolmogorov-Smirnov tests and, for integers, chi-square tests.

Seeds are fixed, so a test that passes keeps passing; a p-value below 1e-4 says that the distribution is another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.random.sources import compiled, seeded

COUNT = 20_000
LEAST = 1e-4
EMPTY = torch.empty(COUNT)

CONTINUOUS: dict[str, tuple[Callable[[], torch.Tensor], Any]] = {
    "rand": (lambda: torch.rand(COUNT), stats.uniform()),
    "rand f64": (lambda: torch.rand(COUNT, dtype=torch.float64), stats.uniform()),
    "uniform": (lambda: EMPTY.clone().uniform_(-3, 5), stats.uniform(-3, 8)),
    "randn": (lambda: torch.randn(COUNT), stats.norm()),
    "normal": (lambda: EMPTY.clone().normal_(2, 3), stats.norm(2, 3)),
    "normal of tensors": (lambda: torch.normal(torch.full((COUNT,), 2.0), torch.full((COUNT,), 3.0)), stats.norm(2, 3)),
    "complex randn": (lambda: torch.randn(COUNT, dtype=torch.complex64).imag, stats.norm(0, 0.5**0.5)),
    "log_normal": (lambda: EMPTY.clone().log_normal_(0.5, 0.7), stats.lognorm(0.7, scale=np.exp(0.5))),
    "cauchy": (lambda: EMPTY.clone().cauchy_(1, 2), stats.cauchy(1, 2)),
    "exponential": (lambda: EMPTY.clone().exponential_(2.5), stats.expon(scale=1 / 2.5)),
    "gamma": (lambda: torch._standard_gamma(torch.full((COUNT,), 0.6)), stats.gamma(0.6)),
    "dirichlet": (
        lambda: torch._sample_dirichlet(torch.tensor([0.5, 1.5, 2.0]).expand(COUNT, 3))[:, 1],
        stats.beta(1.5, 2.5),
    ),
    "rrelu": (
        lambda: -torch.nn.functional.rrelu(torch.full((COUNT,), -1.0), 0.1, 0.4, training=True),
        stats.uniform(0.1, 0.3),
    ),
}

DISCRETE: dict[str, tuple[Callable[[], torch.Tensor], Any]] = {
    "randint": (lambda: torch.randint(-3, 8, (COUNT,)), stats.randint(-3, 8)),
    "randint of floats": (lambda: torch.randint_like(EMPTY, 6), stats.randint(0, 6)),
    "bernoulli": (lambda: torch.bernoulli(torch.full((COUNT,), 0.3)), stats.bernoulli(0.3)),
    "bernoulli p": (lambda: EMPTY.clone().bernoulli_(0.85), stats.bernoulli(0.85)),
    "geometric": (lambda: EMPTY.clone().geometric_(0.35), stats.geom(0.35)),
    "poisson": (lambda: torch.poisson(torch.full((COUNT,), 3.5)), stats.poisson(3.5)),
    "binomial": (
        lambda: torch.binomial(torch.full((COUNT,), 12.0), torch.full((COUNT,), 0.3)),
        stats.binom(12, 0.3),
    ),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Values of every distribution, by name, from one program."""
    cases = {**CONTINUOUS, **DISCRETE}
    values, _ = seeded(11, compiled(lambda: [function() for function, _ in cases.values()]))
    return {name: value.double().numpy() for name, value in zip(cases, values, strict=True)}


@pytest.mark.parametrize("name", CONTINUOUS, ids=lambda name: name.replace(" ", "_"))
def test_continuous_distribution(name: str, drawn: dict[str, np.ndarray]) -> None:
    assert stats.kstest(drawn[name], CONTINUOUS[name][1].cdf).pvalue > LEAST


@pytest.mark.parametrize("name", DISCRETE, ids=lambda name: name.replace(" ", "_"))
def test_discrete_distribution(name: str, drawn: dict[str, np.ndarray]) -> None:
    assert _fits(drawn[name], DISCRETE[name][1].pmf)


def _fits(values: np.ndarray, probability: Callable[[Any], Any]) -> bool:
    """Whether counts of integers fit their probabilities; rare ones are put together."""
    numbers = np.arange(values.min(), values.max() + 1)
    expected = probability(numbers) * len(values)
    often = expected >= 10
    seen = np.array([(values == number).sum() for number in numbers])
    seen = np.append(seen[often], len(values) - seen[often].sum())
    wanted = np.append(expected[often], len(values) - expected[often].sum())
    if wanted[-1] < 10:
        assert seen[-1] <= 40, "values outside the support"
        seen, wanted = seen[:-1], wanted[:-1] * (seen[:-1].sum() / wanted[:-1].sum())
    return bool(stats.chisquare(seen, wanted).pvalue > LEAST)


@pytest.mark.parametrize("replacement", [True, False])
def test_multinomial(replacement: bool) -> None:
    """The first sample has the weights as probabilities; without replacement, no category comes twice."""
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0, 1.5])

    def draw() -> torch.Tensor:
        return weights.expand(COUNT, 5).multinomial(4, replacement)

    (values,), _ = seeded(13, compiled(draw))
    assert _fits(values[:, 0].double().numpy(), lambda index: (weights / weights.sum()).numpy()[index.astype(int)])
    assert bool((values != 1).all())
    rows = values.sort(dim=1)[0]
    assert bool((rows[:, 1:] != rows[:, :-1]).all()) is not replacement


def test_randperm_puts_every_number_everywhere() -> None:
    run = compiled(lambda: torch.stack([torch.randperm(5) for _ in range(4)]))
    rows = torch.cat([seeded(seed, run)[0][0] for seed in range(500)])
    assert torch.equal(rows.sort(dim=1)[0], torch.arange(5).expand(2000, 5))
    counts = torch.stack([rows[:, place].bincount(minlength=5) for place in range(5)])
    assert stats.chisquare(counts.numpy().reshape(-1)).pvalue > LEAST


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bounds_and_moments_in_every_dtype(dtype: torch.dtype) -> None:
    def draw() -> tuple[torch.Tensor, ...]:
        return (
            torch.rand(COUNT, dtype=dtype),
            torch.randn(COUNT, dtype=dtype),
            torch.empty(COUNT, dtype=dtype).exponential_(),
        )

    (uniform, normal, exponential), _ = seeded(14, compiled(draw))
    assert uniform.dtype == normal.dtype == exponential.dtype == dtype
    assert bool(((uniform >= 0) & (uniform < 1)).all())
    assert bool((exponential > 0).all())
    error = 5 / COUNT**0.5
    assert abs(uniform.double().mean() - 0.5) < error * 12**-0.5 + torch.finfo(dtype).eps / 2
    assert abs(uniform.double().var() - 1 / 12) < error / 12
    assert abs(normal.double().mean()) < error
    assert abs(normal.double().var() - 1) < error * 2**0.5
    assert abs(exponential.double().mean() - 1) < error
