"""Runs the code that Helion generates for a kernel, on this machine's CPU, from torch tensors."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

# Private, and the path `Kernel.jax_fn` takes itself. `jax_fn` returns what the kernel returns, which for a
# kernel that writes into its argument is None; the new value stays on the adapter that stands for it.
from helion.runtime.pallas.jax_export import _JaxExportTensor, default_pallas_jax_launcher

CPU = torch.device("cpu")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Callable[..., None]]:
    """`runner(kernel)` takes the kernel's arguments and writes to those that it writes to."""
    monkeypatch.setenv("HELION_PALLAS_INTERPRET", "1")
    return lambda kernel: lambda *arguments: run(kernel, arguments)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch, runner: Callable[..., Any]) -> Callable[..., None]:
    """`generated(module_globals, kernel)` makes functions that call `kernel` run its generated code."""
    return lambda names, kernel: monkeypatch.setitem(names, kernel.name, runner(kernel))


def run(kernel: Any, arguments: tuple[Any, ...]) -> None:
    scalars = tuple(None if isinstance(value, torch.Tensor) else value for value in arguments)
    tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
    for tensor, result in zip(tensors, program(kernel, scalars)(*map(to_jax, tensors)), strict=True):
        tensor.copy_(from_jax(result))


@functools.cache
def program(kernel: Any, scalars: tuple[Any, ...]) -> Callable[..., list[jax.Array]]:
    """From the arrays that stand where `scalars` is None to their values after the kernel."""

    def after(*arrays: jax.Array) -> list[jax.Array]:
        remaining = iter(arrays)
        call = [
            _JaxExportTensor.from_jax(next(remaining), device=CPU) if scalar is None else scalar for scalar in scalars
        ]
        bound = kernel.bind(tuple(call))
        bound.ensure_config_exists(call)
        bound._run(*call, _launcher=launch)
        return [value._jax_arr for value in call if isinstance(value, _JaxExportTensor)]

    return jax.jit(after)


def launch(*arguments: Any, **options: Any) -> Any:
    """Helion's launcher, interpreting; the kernels were built for a TPU, before the variable was set."""
    return default_pallas_jax_launcher(*arguments, **{**options, "_pallas_interpret": True})


def to_jax(value: torch.Tensor) -> jax.Array:
    if value.dtype == torch.bfloat16:  # NumPy has no bfloat16 that both sides know
        return jnp.asarray(value.float().numpy()).astype(jnp.bfloat16)
    return jnp.asarray(value.numpy())


def from_jax(value: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value))
