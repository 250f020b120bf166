"""Programs run where they are told to, and give what eager gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest
import torch

from bench.kernels import KERNELS
from tests.backend.alone import ROOT  # noqa: F401  (puts the repository on the path, for bench)
from tpu_lowering.runtime.device import DeviceProgram

SECOND = jax.devices("cpu")[1]


def devices_of_calls(programs: list[DeviceProgram]) -> set[jax.Device]:
    """Has programs say where the arrays are that they take and give, from the next call on."""
    found: set[jax.Device] = set()
    for program in programs:
        run = program.compiled

        def recorded(*arrays: jax.Array, run: Callable[..., Any] = run) -> Any:
            results = run(*arrays)
            for array in (*arrays, *results):
                if not array.is_deleted():
                    found.update(array.devices())
            return results

        program.compiled = recorded
    return found


@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case.name)
def test_kernels(case: Any, compiled: Callable[..., Any], programs: list[DeviceProgram]) -> None:
    arguments = case.example(True)
    run = compiled(case.model)
    result = run(*arguments)
    found = devices_of_calls(programs)
    assert torch.equal(run(*arguments), result)
    assert found == {SECOND}
    tolerance = case.tolerance[result.dtype]
    expected = case.reference(*arguments)
    torch.testing.assert_close(result, expected, rtol=tolerance.relative, atol=tolerance.absolute)


def test_training_is_equal_to_eager(compiled: Callable[..., Any], programs: list[DeviceProgram]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 4))
    twin = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 4))
    twin.load_state_dict(model.state_dict())
    run = compiled(model)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in (model, twin)]
    for _ in range(4):
        x = torch.randn(8, 16)
        losses = [forward(x).square().mean() for forward in (run, twin)]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(*losses)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)
    found = devices_of_calls(programs)
    run(torch.randn(8, 16)).sum().backward()
    assert found == {SECOND} and len(programs) == 2


DTYPES = (
    torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.int8, torch.bool, torch.complex64,
    torch.complex128, torch.float8_e4m3fn,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4)], ids=str)
def test_every_dtype_travels_unchanged(
    dtype: torch.dtype, shape: tuple[int, ...], compiled: Callable[..., Any]
) -> None:
    x = torch.randint(0, 2, shape).to(dtype)
    for value in (x, x.t() if x.ndim == 2 else x, x.conj() if dtype.is_complex else x):
        torch._dynamo.reset()
        result = compiled(lambda x: x.clone())(value)
        assert result.dtype == dtype and result.shape == value.shape
        assert torch.equal(result.resolve_conj().to(torch.complex128), value.resolve_conj().to(torch.complex128))


def test_results_come_as_eager_lays_them_out(compiled: Callable[..., Any]) -> None:
    def function(x: torch.Tensor) -> tuple[Any, ...]:
        y = x + 1
        return y.permute(2, 0, 1), y, y[:, :, ::2], x.sum().expand(2, 3), x.shape[0], x[:0] + 1

    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(compiled(function)(x), function(x), check_stride=True)


def test_random_numbers_dynamic_sizes_and_eager_parts(compiled: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    draws = compiled(lambda x: torch.rand_like(x))
    first = draws(torch.ones(8))
    torch.manual_seed(0)
    assert torch.equal(draws(torch.ones(8)), first) and not torch.equal(draws(torch.ones(8)), first)

    sizes = compiled(lambda x, w: torch.softmax(x @ w, 0).sum(1), buckets=8)
    weight = torch.randn(4, 4)
    for rows in (3, 5, 11, 13):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(sizes(x, weight), torch.softmax(x @ weight, 0).sum(1))

    parts = compiled(lambda x: torch.nonzero(x * 2).sum() + x.sum(), fallback="eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        torch.testing.assert_close(parts(torch.eye(3)), torch.tensor(9.0))


def test_passes_are_verified(compiled: Callable[..., Any]) -> None:
    case = KERNELS[0]
    arguments = case.example(True)
    torch.testing.assert_close(compiled(case.model, verify=True, poison=True)(*arguments), case.reference(*arguments))


def test_everything_is_started_before_anything_is_waited_for(compiled: Callable[..., Any], events: list[str]) -> None:
    def function(x: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cache.add_(x)
        return x.sin(), x.cos()

    run = compiled(function)
    run(torch.ones(4), torch.ones(4))
    events.clear()
    run(torch.ones(4), torch.ones(4))
    assert events == ["start"] * 3 + ["wait"] * 3
