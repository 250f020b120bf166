"""The three kernels of `tpu_lowering.demo.kernels` in Pallas, for machines without Helion.

They have the same names, arguments and block sizes, and write into their argument `out` as well.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.experimental import pallas as pl

from tpu_lowering.kernels.operators import kernel_op

ROWS = 128
QUERIES = 256


def _like(out: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(out.shape, out.dtype)


@kernel_op("tpu_lowering_demo::rms_norm_into", mutates_args=("out",))
def rms_norm_into(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Write `x / sqrt(mean(x ** 2) + eps) * weight` to `out`; `x`, `out` [rows, width], `weight` [width]."""

    def body(x: Any, weight: Any, out: Any) -> None:
        values = x[...].astype(jnp.float32)
        scale = jax.lax.rsqrt((values * values).sum(axis=1, keepdims=True) / x.shape[1] + eps)
        out[...] = weight[...][None, :] * (values * scale).astype(out.dtype)

    rows, width = x.shape
    block = pl.BlockSpec((ROWS, width), lambda i: (i, 0))
    whole = pl.BlockSpec((width,), lambda i: (0,))
    call = pl.pallas_call(
        body, grid=(pl.cdiv(rows, ROWS),), in_specs=[block, whole], out_specs=block, out_shape=_like(out)
    )
    return call(x, weight)


@kernel_op("tpu_lowering_demo::swiglu_into", mutates_args=("out",))
def swiglu_into(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """Write `gate * sigmoid(gate) * up` to `out`; all [rows, width] of one float dtype."""

    def body(gate: Any, up: Any, out: Any) -> None:
        values = gate[...].astype(jnp.float32)
        out[...] = (values * jax.nn.sigmoid(values)).astype(out.dtype) * up[...]

    rows, width = out.shape
    columns = min(width, 512)
    block = pl.BlockSpec((ROWS, columns), lambda i, j: (i, j))
    grid = (pl.cdiv(rows, ROWS), pl.cdiv(width, columns))
    return pl.pallas_call(body, grid=grid, in_specs=[block, block], out_specs=block, out_shape=_like(out))(gate, up)


@kernel_op("tpu_lowering_demo::causal_attention_into", mutates_args=("out",))
def causal_attention_into(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, scale: float) -> None:
    """Write causal `softmax(q @ k.T * scale) @ v` to `out`; shapes as in `tpu_lowering.demo.kernels`."""
    (heads, rows, width), length = q.shape, k.shape[1]
    queries = min(rows, QUERIES)

    def body(q: Any, k: Any, v: Any, out: Any) -> None:
        product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
        scores = product(q[0], k[0].T) * scale
        row = pl.program_id(1) * queries + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(column <= jax.lax.rem(row, length), scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        weights = weights / weights.sum(axis=1, keepdims=True)
        out[0] = product(weights.astype(v.dtype), v[0]).astype(out.dtype)

    some = pl.BlockSpec((1, queries, width), lambda head, i: (head, i, 0))
    every = pl.BlockSpec((1, length, width), lambda head, i: (head, 0, 0))
    grid = (heads, pl.cdiv(rows, queries))
    call = pl.pallas_call(body, grid=grid, in_specs=[some, every, every], out_specs=some, out_shape=_like(out))
    return call(q, k, v)
