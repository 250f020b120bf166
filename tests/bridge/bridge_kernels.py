"""Destination-passing operators as users of other backends have them; one has a JAX implementation too."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import torch
from torch import Tensor

import tpu_lowering


@torch.library.custom_op("bridge::exp_into", mutates_args=("out",))
def exp_into(x: Tensor, out: Tensor) -> None:
    out.copy_(x.exp())


@torch.library.custom_op("bridge::first_rows", mutates_args=("out",))
def first_rows(x: Tensor, out: Tensor, rows: int = 2, how: str = "a, (b") -> None:
    """Writes part of a buffer."""
    assert how == "a, (b"
    out[:rows] = x[:rows]


@torch.library.custom_op("bridge::accumulate", mutates_args=("out",))
def accumulate(x: Tensor, out: Tensor) -> None:
    out.add_(x)


@torch.library.custom_op("bridge::two_into", mutates_args=("a", "b"))
def two_into(x: Tensor, a: Tensor, b: Tensor) -> None:
    a.copy_(x.exp())
    b.copy_(x.sin())


@torch.library.custom_op("bridge::update", mutates_args=("cache", "out"))
def update(x: Tensor, cache: Tensor, out: Tensor) -> Tensor:
    """Writes an input and a result, and has a result of its own."""
    cache.add_(x)
    out.copy_(cache * 2)
    return x.sum()


@update.register_fake
def _(x: Tensor, cache: Tensor, out: Tensor) -> Tensor:
    return x.new_empty(())


@torch.library.custom_op("bridge::spread", mutates_args=("outs", "extra"))
def spread(outs: list[Tensor], x: Tensor, extra: Tensor | None = None) -> None:
    for number, out in enumerate(outs):
        out.copy_(x + number)
    if extra is not None:
        extra.copy_(x)


@torch.library.custom_op("bridge::exp_over", mutates_args=("out",))
def exp_over(x: Tensor, out: Tensor) -> None:
    """The same as ``exp_into``; its JAX implementation is seen to overwrite all of ``out``."""
    out.copy_(x.exp())


@tpu_lowering.register_kernel(torch.ops.bridge.exp_over.default)
def exp_over_in_jax(x: Any, out: Any) -> Any:
    return jnp.exp(x)


@torch.library.custom_op("bridge::iota_into", mutates_args=("out",))
def iota_into(out: Tensor) -> None:
    """Has no operand but the one it writes."""
    out.copy_(torch.arange(out.numel()).view(out.shape))


@torch.library.custom_op("bridge::count_up", mutates_args=("out",))
def count_up(x: Tensor, out: Tensor) -> None:
    """Reads, in each step, what the step before wrote, if the two arguments are one buffer."""
    out[0] = 1
    for row in range(1, out.shape[0]):
        out[row] = x[row - 1] + 1
