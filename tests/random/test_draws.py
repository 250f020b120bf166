"""Where random values come from: reproducible from a seed, new in every call and at every place that draws."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import jax
import pytest
import torch

import tpu_lowering
from tests.random.sources import compiled, seeded

X = torch.linspace(0.1, 0.9, 64).reshape(8, 8)
MODES = pytest.mark.parametrize("mode", ["jax", "torch"])

DRAWING: dict[str, Callable[[torch.Tensor], Any]] = {
    "rand": lambda x: torch.rand(8, 8),
    "randn": lambda x: torch.randn(8, 8, dtype=torch.float64),
    "randint": lambda x: torch.randint(1000, (8, 8)),
    "rand_like": lambda x: torch.rand_like(x, dtype=torch.bfloat16),
    "randint_like": lambda x: torch.randint_like(x, -50, 500),
    "bernoulli": torch.bernoulli,
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(x),
    "normal": lambda x: torch.normal(x, x),
    "normal_": lambda x: x.clone().normal_(1.0, 2.0),
    "uniform_": lambda x: x.clone().uniform_(-1.0, 1.0),
    "exponential_": lambda x: x.clone().exponential_(2.0),
    "multinomial": lambda x: x.multinomial(5),
    "multinomial with replacement": lambda x: x.multinomial(20, replacement=True),
    "randperm": lambda x: torch.randperm(64),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.5),
    "dropout2d": lambda x: torch.nn.functional.dropout2d(x.reshape(2, 32, 1, 1), 0.5),
    "alpha_dropout": lambda x: torch.nn.functional.alpha_dropout(x, 0.5, training=True),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
    "gumbel_softmax": torch.nn.functional.gumbel_softmax,
}
ON_DATA: dict[str, Callable[[torch.Tensor], Any]] = {
    "poisson": lambda x: torch.poisson(x * 50),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 100), x),
    "gamma": torch._standard_gamma,
    "dirichlet": torch._sample_dirichlet,
    "rrelu": lambda x: torch.nn.functional.rrelu(x - 0.5, training=True),
}


@MODES
def test_a_seed_repeats_values_and_calls_differ(mode: str) -> None:
    cases = {**DRAWING, **ON_DATA} if mode == "jax" else DRAWING
    run = compiled(lambda x: [case(x) for case in cases.values()], mode, verify=True)
    first, after_first = seeded(7, run, X)
    second = run(X)
    again, after_again = seeded(7, run, X)
    other, _ = seeded(8, run, X)
    assert torch.equal(after_first, after_again)
    for index, name in enumerate(cases):
        assert torch.equal(first[index], again[index]), name
        assert not torch.equal(first[index], second[index]), name
        assert not torch.equal(first[index], other[index]), name


@MODES
def test_a_call_advances_the_generator(mode: str) -> None:
    run = compiled(lambda x: torch.rand_like(x), mode)
    run(X)
    before = torch.get_rng_state()
    run(X)
    assert not torch.equal(before, torch.get_rng_state())


@MODES
def test_a_program_without_draws_leaves_the_generator_alone(mode: str) -> None:
    run = compiled(lambda x: torch.nn.functional.dropout(x + 1, 0.5, training=False), mode)
    before = torch.get_rng_state()
    assert torch.equal(run(X), X + 1)
    assert torch.equal(before, torch.get_rng_state())


@MODES
def test_equal_operators_draw_different_values(mode: str) -> None:
    """Also where a pass or AOTAutograd merges equal nodes."""
    (a, b, c), _ = seeded(0, compiled(lambda: (torch.rand(64), torch.rand(64), torch.rand(64)), mode))
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)
    (d,), _ = seeded(0, compiled(lambda x: torch.rand_like(x) - torch.rand_like(x), mode), X)
    assert d.count_nonzero() > 60


def test_programs_of_one_seed_are_independent() -> None:
    """Neither equal keys of a program's nodes nor equal keys of calls: the numbers do not correlate."""
    run = compiled(lambda: (torch.randn(20_000), torch.randn(20_000)))
    values = torch.stack([row for seed in range(3) for row in seeded(seed, run)[0]])
    off_diagonal = torch.corrcoef(values) - torch.eye(6)
    assert off_diagonal.abs().max() < 5 / 20_000**0.5


@MODES
def test_in_place_fills_write_the_argument(mode: str) -> None:
    def fill(x: torch.Tensor) -> torch.Tensor:
        x[::2].uniform_(2.0, 3.0)
        x[:, 1].exponential_()
        return x * 1

    x = torch.zeros(8, 8)
    result = compiled(fill, mode, poison=True)(x)
    assert torch.equal(result, x)
    assert bool(((x[::2, 2:] >= 2) & (x[::2, 2:] < 3)).all())
    assert bool((x[1::2, 2:] == 0).all())
    assert bool((x[:, 1] > 0).all())


@MODES
def test_dynamic_shapes_draw_for_each_size(mode: str) -> None:
    run = compiled(lambda x: x * 0 + torch.rand(x.shape[0], 3), mode, dynamic=True)
    for size in (4, 9, 17):
        (value,), _ = seeded(1, run, torch.zeros(size, 3))
        (again,), _ = seeded(1, run, torch.zeros(size, 3))
        assert value.shape == (size, 3)
        assert value.unique().numel() > 2 * size
        assert torch.equal(value, again)


def test_unused_memory_is_no_operand() -> None:
    """``torch.empty(...).uniform_()`` leaves no allocation behind, and the report has none to explain."""
    report = tpu_lowering.explain(lambda: torch.empty(64).uniform_() * 2)
    assert report.allocations_kept == ()
    assert report.allocations_removed == 0


def test_explain_lists_draws() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.5) + torch.rand_like(x)

    report = tpu_lowering.explain(model, X)
    assert [(draw.operator, draw.source) for draw in report.draws] == [
        ("aten.bernoulli.p", "key"),
        ("aten.uniform.default", "key"),
    ]
    assert all(draw.where.startswith("test_draws.py") and "dropout" in draw.where for draw in report.draws)
    assert "random draws in the programs" in str(report)
    assert report.to_dict()["draws"][0]["operator"] == "aten.bernoulli.p"


def test_nothing_global_changes() -> None:
    def state() -> list[Any]:
        return [
            jax.config.jax_enable_x64,
            jax.config.jax_default_prng_impl,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_num_threads(),
            torch.default_generator.initial_seed(),
        ]

    torch.manual_seed(5)
    before, generator = state(), torch.get_rng_state()
    for mode in ("jax", "torch"):
        run = compiled(DRAWING["dropout"], mode, verify=True)
        torch.set_rng_state(generator)
        run(X)
    assert state() == before


def test_the_kind_of_key_does_not_follow_jax_s_default() -> None:
    run = compiled(DRAWING["rand"])
    (first,), _ = seeded(3, run, X)
    with jax.default_prng_impl("rbg"):
        (second,), _ = seeded(3, compiled(DRAWING["rand"]), X)
    assert torch.equal(first, second)


def test_threads_draw_different_values() -> None:
    run = compiled(lambda: torch.rand(64))
    run()
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.extend(run() for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(value.tolist()) for value in found}) == 20
