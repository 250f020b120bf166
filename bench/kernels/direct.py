"""The nine kernels written by hand for Pallas: plain ``pallas_call`` with block specs and a fresh output.

Each has the algorithm and the block sizes of its Helion counterpart; where that one loops over blocks inside a
grid step, this one has a further grid dimension and keeps running values in VMEM scratch. They are what the
compiled Helion kernels are compared with: `DIRECT[name](*arrays)` takes the arrays of `KernelCase.example`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = (256, 1024)  # rows and columns of the pointwise kernels' Helion configs
SOFTMAX_BLOCK = (128, 1024)
WELFORD_BLOCK = (64, 512)
ATTENTION_BLOCK = (512, 512)  # queries, keys
BMM_BLOCK = (512, 512, 512)  # m, n, k


def call(
    body: Callable[..., None],
    out: jax.Array,
    grid: Sequence[int],
    in_specs: Sequence[pl.BlockSpec],
    out_spec: pl.BlockSpec,
    scratch: Sequence[Any] = (),
    ordered: int = 0,
    *,
    vmem_bytes: int | None,
    interpret: bool,
) -> Callable[..., jax.Array]:
    """A ``pallas_call`` whose output is fresh and shaped like ``out``.

    Args:
        ordered: how many of the last grid dimensions must run in order, because scratch carries values over them.
        vmem_bytes: scoped VMEM that it may use; None for the compiler's default.
        interpret: run on this machine's CPU instead of compiling for a TPU.
    """
    semantics = ("parallel",) * (len(grid) - ordered) + ("arbitrary",) * ordered
    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        grid=tuple(grid),
        in_specs=list(in_specs),
        out_specs=out_spec,
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=vmem_bytes),
        interpret=interpret,
    )


def tiles(shape: Sequence[int], block: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The grid that covers a shape, and the block, no longer than the shape."""
    fitted = tuple(min(size, length) for size, length in zip(block, shape, strict=True))
    return tuple(pl.cdiv(length, size) for size, length in zip(fitted, shape, strict=True)), fitted


def exp_body(x: Any, out: Any) -> None:
    out[...] = jnp.exp(x[...])


def add_body(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...] + y[...]


def geglu_body(a: Any, b: Any, out: Any) -> None:
    gate = a[...].astype(jnp.float32)
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    out[...] = (0.5 * gate * (1.0 + jnp.tanh(inner)) * b[...].astype(jnp.float32)).astype(out.dtype)


def swiglu_body(a: Any, b: Any, out: Any) -> None:
    gate = a[...].astype(jnp.float32)
    out[...] = (gate * jax.nn.sigmoid(gate) * b[...].astype(jnp.float32)).astype(out.dtype)


def pointwise(
    body: Callable[..., None],
    *arrays: jax.Array,
    block: tuple[int, int] = BLOCK,
    vmem_bytes: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """A kernel without loops over equal [m, n] arrays, one block of each a grid step."""
    grid, fitted = tiles(arrays[0].shape, block)
    spec = pl.BlockSpec(fitted, lambda i, j: (i, j))
    run = call(body, arrays[0], grid, [spec] * len(arrays), spec, vmem_bytes=vmem_bytes, interpret=interpret)
    return run(*arrays)


def mix(value: jax.Array) -> jax.Array:
    """Wellons's "lowbias32", as in `bench.kernels.low_mem_dropout`."""
    value = value ^ ((value >> 16) & 0xFFFF)
    value = value * 0x7FEB352D
    value = value ^ ((value >> 15) & 0x1FFFF)
    value = value * (0x846CA68B - (1 << 32))
    return value ^ ((value >> 16) & 0xFFFF)


def dropout_body(x: Any, seed: Any, out: Any, *, width: int, p: float) -> None:
    rows, columns = out.shape
    row = pl.program_id(0) * rows + jax.lax.broadcasted_iota(jnp.int32, out.shape, 0)
    column = pl.program_id(1) * columns + jax.lax.broadcasted_iota(jnp.int32, out.shape, 1)
    bits = mix(mix(row * width + column) + seed[0])
    fraction = ((bits >> 8) & 0xFFFFFF).astype(jnp.float32) * (1.0 / 16777216.0)
    scaled = x[...].astype(jnp.float32) * (1.0 / (1.0 - p))
    out[...] = jnp.where(fraction >= p, scaled, 0.0).astype(out.dtype)


def low_mem_dropout(
    x: jax.Array, seed: jax.Array, *, p: float = 0.25, vmem_bytes: int | None = None, interpret: bool = False
) -> jax.Array:
    """`x` [m, n]; `seed` [1] int32, held in scalar memory."""
    grid, fitted = tiles(x.shape, BLOCK)
    spec = pl.BlockSpec(fitted, lambda i, j: (i, j))
    body = functools.partial(dropout_body, width=x.shape[1], p=p)
    specs = [spec, pl.BlockSpec(memory_space=pltpu.SMEM)]
    return call(body, x, grid, specs, spec, vmem_bytes=vmem_bytes, interpret=interpret)(x, seed)


def softmax_body(x: Any, out: Any, *, columns: int) -> None:
    rows, width = out.shape
    parts = [slice(start, start + columns) for start in range(0, width, columns)]
    largest = jnp.full((rows, 1), -jnp.inf, jnp.float32)
    total = jnp.zeros((rows, 1), jnp.float32)
    for part in parts:
        values = x[:, part].astype(jnp.float32)
        grown = jnp.maximum(largest, values.max(axis=1, keepdims=True))
        total = total * jnp.exp(largest - grown) + jnp.exp(values - grown).sum(axis=1, keepdims=True)
        largest = grown
    for part in parts:
        out[:, part] = (jnp.exp(x[:, part].astype(jnp.float32) - largest) / total).astype(out.dtype)


def softmax_two_pass(x: jax.Array, *, vmem_bytes: int | None = None, interpret: bool = False) -> jax.Array:
    """`x` [m, n]; whole rows in VMEM, their columns taken block by block, twice."""
    m, n = x.shape
    rows, columns = SOFTMAX_BLOCK
    grid, fitted = tiles((m,), (rows,))
    spec = pl.BlockSpec((fitted[0], n), lambda i: (i, 0))
    body = functools.partial(softmax_body, columns=columns)
    return call(body, x, grid, [spec], spec, vmem_bytes=vmem_bytes, interpret=interpret)(x)


def welford_body(x: Any, weight: Any, bias: Any, out: Any, *, columns: int, eps: float) -> None:
    rows, width = out.shape
    mean = jnp.zeros((rows, 1), jnp.float32)
    squares = jnp.zeros((rows, 1), jnp.float32)
    for start in range(0, width, columns):
        values = x[:, start : start + columns].astype(jnp.float32)
        added, merged = values.shape[1], start + values.shape[1]
        block_mean = values.sum(axis=1, keepdims=True) / added
        centred = values - block_mean
        shift = block_mean - mean
        squares += (centred * centred).sum(axis=1, keepdims=True) + shift * shift * (start * added / merged)
        mean += shift * (added / merged)
    scale = jax.lax.rsqrt(squares / width + eps)
    for start in range(0, width, columns):
        part = slice(start, start + columns)
        affine = (x[:, part].astype(jnp.float32) - mean) * scale * weight[part].astype(jnp.float32)[None, :]
        out[:, part] = (affine + bias[part].astype(jnp.float32)[None, :]).astype(out.dtype)


def welford(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    *,
    eps: float = 1e-5,
    vmem_bytes: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`x` [m, n], `weight` and `bias` [n]; whole rows in VMEM, their columns taken block by block."""
    m, n = x.shape
    rows, columns = WELFORD_BLOCK
    grid, fitted = tiles((m,), (rows,))
    spec = pl.BlockSpec((fitted[0], n), lambda i: (i, 0))
    specs = [spec, pl.BlockSpec((n,), lambda i: (0,)), pl.BlockSpec((n,), lambda i: (0,))]
    body = functools.partial(welford_body, columns=columns, eps=eps)
    return call(body, x, grid, specs, spec, vmem_bytes=vmem_bytes, interpret=interpret)(x, weight, bias)


def attention_body(q: Any, k: Any, v: Any, out: Any, largest: Any, total: Any, weighted: Any, *, scale: float) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, -jnp.inf)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    scores = jnp.einsum("qd,kd->qk", q[0], k[0], preferred_element_type=jnp.float32) * scale
    grown = jnp.maximum(largest[...], scores.max(axis=1, keepdims=True))
    weights = jnp.exp(scores - grown)
    shrink = jnp.exp(largest[...] - grown)
    total[...] = total[...] * shrink + weights.sum(axis=1, keepdims=True)
    added = jnp.dot(weights.astype(v.dtype), v[0], preferred_element_type=jnp.float32)
    weighted[...] = weighted[...] * shrink + added
    largest[...] = grown

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        out[0] = (weighted[...] / total[...]).astype(out.dtype)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, vmem_bytes: int | None = None, interpret: bool = False
) -> jax.Array:
    """All [batch, heads, length, width], lengths multiples of their blocks; the last grid dimension is keys."""
    width = q.shape[-1]
    flat_q, flat_k, flat_v = (array.reshape(-1, *array.shape[2:]) for array in (q, k, v))
    (query_blocks, key_blocks), (queries, keys) = tiles((q.shape[2], k.shape[2]), ATTENTION_BLOCK)
    query_spec = pl.BlockSpec((1, queries, width), lambda head, i, j: (head, i, 0))
    key_spec = pl.BlockSpec((1, keys, width), lambda head, i, j: (head, j, 0))
    scratch = [pltpu.VMEM((queries, columns), jnp.float32) for columns in (1, 1, width)]
    run = call(
        functools.partial(attention_body, scale=width**-0.5),
        flat_q,
        (flat_q.shape[0], query_blocks, key_blocks),
        [query_spec, key_spec, key_spec],
        query_spec,
        scratch,
        ordered=1,
        vmem_bytes=vmem_bytes,
        interpret=interpret,
    )
    return run(flat_q, flat_k, flat_v).reshape(q.shape)


def bmm_body(a: Any, b: Any, out: Any, total: Any) -> None:
    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    total[...] += jnp.dot(a[0], b[0], preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _() -> None:
        out[0] = total[...].astype(out.dtype)


def bmm(a: jax.Array, b: jax.Array, *, vmem_bytes: int | None = None, interpret: bool = False) -> jax.Array:
    """`a` [batch, m, k] by `b` [batch, k, n], k a multiple of its block, which is the last grid dimension."""
    batch, m, inner = a.shape
    n = b.shape[2]
    (m_blocks, n_blocks, k_blocks), (rows, columns, depth) = tiles((m, n, inner), BMM_BLOCK)
    specs = [
        pl.BlockSpec((1, rows, depth), lambda item, i, j, k: (item, i, k)),
        pl.BlockSpec((1, depth, columns), lambda item, i, j, k: (item, k, j)),
    ]
    out_spec = pl.BlockSpec((1, rows, columns), lambda item, i, j, k: (item, i, j))
    scratch = [pltpu.VMEM((rows, columns), jnp.float32)]
    out = jax.ShapeDtypeStruct((batch, m, n), a.dtype)
    grid = (batch, m_blocks, n_blocks, k_blocks)
    return call(bmm_body, out, grid, specs, out_spec, scratch, 1, vmem_bytes=vmem_bytes, interpret=interpret)(a, b)


DIRECT: dict[str, Callable[..., jax.Array]] = {
    "exp": functools.partial(pointwise, exp_body),
    "add": functools.partial(pointwise, add_body),
    "softmax_two_pass": softmax_two_pass,
    "welford": welford,
    "attention": attention,
    "bmm": bmm,
    "geglu": functools.partial(pointwise, geglu_body),
    "low_mem_dropout": low_mem_dropout,
    "swiglu": functools.partial(pointwise, swiglu_body),
}
"""By the names of `bench.kernels.KERNELS`."""
