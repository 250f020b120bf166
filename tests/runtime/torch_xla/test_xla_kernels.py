"""Kernels on torch_xla's tensors: results, and what torch_xla did for them by its own metrics."""

from __future__ import annotations

import pytest
import torch
import torch_xla

from bench.xla_kernels import CASES, Case
from tests.runtime.torch_xla.xla_watch import Counts, compiled, count, on_xla, same
from tpu_lowering.demo import decoder, text_tokens
from tpu_lowering.kernels import xla_tensors

TEXT = "A kernel that writes every element of a buffer needs nobody to fill it first. " * 3
CALLS = 3
ONE_EXECUTION_A_CALL = Counts(0, CALLS, 0, 0, 0, ())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels(case: Case) -> None:
    """One compilation for many calls, one execution a call, nothing on the host, results as eager's."""
    inputs, run = on_xla(case.inputs()), compiled(case.model)
    results: list[torch.Tensor] = []

    def step() -> None:
        results[:] = [run(*inputs)]
        torch_xla.sync()

    with torch.no_grad():
        first = count(step)
        assert (first.compilations, first.executions, first.to_host, first.fallbacks) == (1, 1, 0, ())
        assert count(lambda: [step() for _ in range(CALLS)]) == ONE_EXECUTION_A_CALL
    same(case.expected(*case.inputs()), results[0], rtol=1e-5, atol=case.absolute)


def test_kernels_in_eager_torch_xla() -> None:
    case = CASES[1]
    with torch.no_grad():
        same(case.expected(*case.inputs()), case.model(*on_xla(case.inputs())))


def test_the_decoder() -> None:
    tokens = text_tokens(TEXT, 128)
    expected = decoder(kernels=False)(tokens, use_cache=False).logits
    model = decoder(kernels=True).to(torch_xla.device())
    (given,) = on_xla([tokens])
    run = compiled(lambda tokens: model(tokens, use_cache=False).logits)
    results: list[torch.Tensor] = []

    def step() -> None:
        results[:] = [run(given)]
        torch_xla.sync()

    with torch.no_grad():
        assert count(step).compilations == 1
        assert count(lambda: [step() for _ in range(CALLS)]) == ONE_EXECUTION_A_CALL
    assert expected.std() > 0.1
    same(expected, results[0], rtol=1e-5, atol=3e-6)


def test_a_cache_updated_in_place_recompiles_nothing() -> None:
    """64 decode steps: one compilation, one execution a step, both caches donated each time."""
    steps, heads, width = 64, 2, 16
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(steps, heads, width, generator=generator)

    def step(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        keys.index_copy_(1, position, (q * 0.5)[:, None])
        values.index_copy_(1, position, (q + 1)[:, None])
        seen = torch.arange(keys.shape[1], device=q.device) <= position
        scores = torch.where(seen, (keys @ q[:, :, None])[..., 0] * width**-0.5, float("-inf"))
        result = torch.softmax(scores, -1)[:, None] @ values
        position.add_(1)
        return result[:, 0]

    caches = [torch.zeros(heads, steps, width), torch.zeros(heads, steps, width), torch.tensor([0])]
    state, inputs, run = on_xla(caches), on_xla(list(queries)), compiled(step)
    results: list[torch.Tensor] = []

    def decode(first: int, last: int) -> None:
        for q in inputs[first:last]:
            results.append(run(q, *state))
            torch_xla.sync()

    with torch.no_grad():
        expected = [step(q, *caches) for q in queries]
        begin = count(lambda: decode(0, 1))
        rest = count(lambda: decode(1, steps))
    assert begin.compilations == 1 and begin.donated == len(state)
    assert (rest.compilations, rest.executions, rest.to_host, rest.to_device) == (0, steps - 1, 0, 0)
    assert not begin.fallbacks and not rest.fallbacks
    same([*expected, *caches], [*results, *state], rtol=1e-5, atol=1e-6)


def test_kernels_are_mosaic_calls_on_a_tpu() -> None:
    """The same functions lowered for a TPU, which needs none: one custom call of Mosaic's each."""
    import jax

    from bench.xla_kernels import DIRECT

    spec = jax.ShapeDtypeStruct((512, 2048), "float32")
    assert b"tpu_custom_call" in xla_tensors.hlo_module(DIRECT["exp"], [spec], "tpu")
