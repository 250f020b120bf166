"""Gated MLPs of quantised weights: int8 weights alone, and float8 weights with float8 activations."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import nn
from torch.nn import functional as F

from bench.whole_models.case import Built, Case, Weights, made

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of an MLP, and its input."""

    width: int = 4096
    hidden: int = 14336
    rows: int = 32


SMALL = Sizes(width=64, hidden=96, rows=8)


class Int8Linear(nn.Module):
    """int8 weights, and a scale for each element of the result."""

    def __init__(self, inputs: int, out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.randint(-128, 128, (out, inputs)).to(torch.int8))
        self.scale = nn.Buffer(torch.rand(out, dtype=dtype) / 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self.weight.t().to(x.dtype)) * self.scale


class Float8Linear(nn.Module):
    """float8 weights with a scale for each row; activations get one for each row when they come."""

    def __init__(self, inputs: int, out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.randn(out, inputs).to(torch.float8_e4m3fn))
        self.scale = nn.Buffer(torch.rand(1, out, dtype=torch.float32) / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
        rounded = (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return torch._scaled_mm(rounded, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=x.dtype)


class Gated(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, linear: Any, sizes: Sizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate, self.up = (linear(sizes.width, sizes.hidden, dtype) for _ in range(2))
        self.down = linear(sizes.hidden, sizes.width, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def by_int8(x: jax.Array, weights: Weights, name: str) -> jax.Array:
    """``x`` [rows, in] by int8 [out, in]: the product reads the weights as they are."""
    made = jnp.einsum("rm,nm->rn", x, weights[f"{name}.weight"].astype(x.dtype), preferred_element_type=jnp.float32)
    return (made * weights[f"{name}.scale"].astype(jnp.float32)).astype(x.dtype)


def by_float8(x: jax.Array, weights: Weights, name: str) -> jax.Array:
    """``x`` [rows, in], rounded to float8, by float8 [out, in]."""
    scale = jnp.maximum(jnp.max(jnp.abs(x), -1, keepdims=True).astype(jnp.float32), 1e-12) / LARGEST
    rounded = jnp.clip(x.astype(jnp.float32) / scale, -LARGEST, LARGEST).astype(jnp.float8_e4m3fn)
    product = lax.dot_general(
        rounded, weights[f"{name}.weight"], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return (product * scale * weights[f"{name}.scale"]).astype(x.dtype)


def _case(name: str, note: str, torch_linear: Any, linear: Any, sizes: Sizes) -> Case:
    def build(small: bool) -> Built:
        own, dtype = (SMALL, torch.float32) if small else (sizes, torch.bfloat16)
        module = made(lambda: Gated(torch_linear, own, dtype), small).eval()

        def by_hand(weights: Weights, x: jax.Array) -> jax.Array:
            hidden = jax.nn.silu(linear(x, weights, "gate")) * linear(x, weights, "up")
            return linear(lax.optimization_barrier(hidden), weights, "down")

        return Built(module, module, (torch.randn(own.rows, own.width, dtype=dtype),), by_hand)

    return Case(name, note, False, build, 1.0)


CASES = (
    _case("int8_mlp", "Gated MLP of int8 weights, 4096 by 14336, 32 rows", Int8Linear, by_int8, Sizes()),
    _case(
        "float8_mlp", "Gated MLP in float8, scales of rows, 4096 by 14336, 8192 rows", Float8Linear, by_float8,
        Sizes(rows=8192),
    ),
)  # fmt: skip
