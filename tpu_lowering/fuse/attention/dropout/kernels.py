"""Kernels of attention whose weights are dropped, and of its gradients.

One step of a grid has a block of queries and all keys of some heads: whole rows of scores, so that the softmax is one
pass, and the gradients compute it again without anything that the forward gave. Scores and weights stay in VMEM, as
float32; products take what is of the operands' type, and sum in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering.fuse.attention.blocks import rounded
from tpu_lowering.fuse.attention.dropout.calls import DroppedCall
from tpu_lowering.fuse.attention.kernels import AttentionKernel
from tpu_lowering.ir.kernels import Operand
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.session import kept as kept_by

REASON = "a kernel takes a tenth of a second to trace; kernels compare by identity"


@kept_by(64, REASON)
def dropped_kernel(call: DroppedCall) -> AttentionKernel:
    """``ir.dropped_attention.dropped_attention``; operands are those of the call."""

    def run(*given: jax.Array) -> list[jax.Array]:
        return _cut(_launch(call, False, [call.result])(*_lengthened(call, given)), [call.result])

    return _kernel("dropped_attention", call, run, call.operands, [call.result])


@kept_by(64, REASON)
def dropped_gradient_kernel(call: DroppedCall) -> AttentionKernel:
    """``ir.dropped_attention.dropped_attention_gradients``; the gradient of the result, then the call's operands."""
    results = [call.operands[name] for name in ("query", "key", "value")]

    def run(grad: jax.Array, *given: jax.Array) -> list[jax.Array]:
        longer = _longer(grad, rounded(call.sizes.queries), -2)
        return _cut(_launch(call, True, results)(longer, *_lengthened(call, given)), results)

    return _kernel("dropped_attention_gradient", call, run, {"grad": call.result, **call.operands}, results)


def _kernel(
    name: str, call: DroppedCall, run: Callable[..., Any], types: dict[str, TensorType], results: Sequence[TensorType]
) -> AttentionKernel:
    closed = jaxprs.trace(run, list(types.values()), results, call.chip)
    operands = tuple(Operand(operand, type_) for operand, type_ in types.items())
    return AttentionKernel(name, operands, tuple(results), call.where, call.chip, closed)


def _lengthened(call: DroppedCall, given: Sequence[jax.Array]) -> list[jax.Array]:
    """The call's operands, with lengths that are multiples of 128: zeros are at their ends."""
    queries, keys = rounded(call.sizes.queries), rounded(call.sizes.keys)
    query, key, value, kept, *masks = given
    found = [_longer(query, queries, -2), _longer(key, keys, -2), _longer(value, keys, -2)]
    found.append(_longer(_longer(kept, queries, -2), keys, -1))
    for mask in masks:
        whole = jnp.broadcast_to(mask, (*mask.shape[:-1], call.sizes.keys))
        found.append(_longer(whole if mask.shape[-2] == 1 else _longer(whole, queries, -2), keys, -1))
    return found


def _longer(values: jax.Array, length: int, dim: int) -> jax.Array:
    missing = [(0, 0)] * values.ndim
    missing[dim] = (0, length - values.shape[dim])
    return jnp.pad(values, missing) if missing[dim][1] else values


def _cut(values: Sequence[jax.Array], results: Sequence[TensorType]) -> list[jax.Array]:
    return [one[:, : type_.shape[1]] for one, type_ in zip(values, results, strict=True)]


# Grid ---------------------------------------------------------------------------------------------------
def _launch(call: DroppedCall, is_gradient: bool, results: Sequence[TensorType]) -> Callable[..., Any]:
    """A ``pallas_call`` over batch, blocks of heads and blocks of queries."""
    sizes, block = call.sizes, call.block
    queries, keys = rounded(sizes.queries), rounded(sizes.keys)
    query, result = (_rows_of_queries(call, width) for width in (sizes.width, sizes.value_width))
    key, value = (_rows_of_keys(call, width) for width in (sizes.width, sizes.value_width))
    kept = pl.BlockSpec((1, call.heads, block.queries, keys), lambda i, j, k: (i, j, k, 0))
    given = [query, key, value, kept, *_of_mask(call)]
    lengths = (queries, keys, keys)[: len(results)]
    widths = (sizes.width, sizes.value_width) if is_gradient else ()
    return pl.pallas_call(
        functools.partial(_gradients if is_gradient else _result, call),
        grid=(sizes.batch, sizes.shared // block.shared, queries // block.queries),
        in_specs=[result, *given] if is_gradient else given,
        out_specs=[query, key, value] if is_gradient else [result],
        out_shape=[
            jax.ShapeDtypeStruct((type_.shape[0], length, type_.shape[2]), type_.dtype)
            for type_, length in zip(results, lengths, strict=True)
        ],
        scratch_shapes=[pltpu.VMEM((keys, block.shared * width), jnp.float32) for width in widths],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=call.vmem
        ),
        name="dropped_attention_gradient" if is_gradient else "dropped_attention",
    )


def _rows_of_queries(call: DroppedCall, width: int) -> pl.BlockSpec:
    shape = (1, call.block.queries, call.heads * width)
    if call.block.is_apart:
        return pl.BlockSpec(shape, lambda i, j, k: (i * call.sizes.shared + j, k, 0))
    return pl.BlockSpec(shape, lambda i, j, k: (i, k, j))


def _rows_of_keys(call: DroppedCall, width: int) -> pl.BlockSpec:
    shape = (1, rounded(call.sizes.keys), call.block.shared * width)
    if call.block.is_apart:
        return pl.BlockSpec(shape, lambda i, j, k: (i * call.sizes.shared + j, 0, 0))
    return pl.BlockSpec(shape, lambda i, j, k: (i, 0, j))


def _of_mask(call: DroppedCall) -> list[pl.BlockSpec]:
    if call.sizes.mask is None:
        return []
    of_batch, of_heads, of_queries = (size > 1 for size in call.sizes.mask[:3])
    shape = (1, call.heads if of_heads else 1, call.block.queries if of_queries else 1, rounded(call.sizes.keys))

    def place(i: Any, j: Any, k: Any) -> tuple[Any, ...]:
        return (i if of_batch else 0, j if of_heads else 0, k if of_queries else 0, 0)

    return [pl.BlockSpec(shape, place)]


# Blocks -------------------------------------------------------------------------------------------------
def _result(call: DroppedCall, query: Any, key: Any, value: Any, kept: Any, *others: Any) -> None:
    """One block of the result."""
    *mask, out = others
    found: list[jax.Array] = []
    for shared, head in _heads(call):
        values = _columns(value, shared, call.sizes.value_width)
        weights = _weights(
            call, head, _columns(query, head, call.sizes.width), _columns(key, shared, call.sizes.width), mask
        )
        dropped = (weights * _factors(call, kept, head)).astype(values.dtype)
        found.append(_dot(dropped, values, (1, 0)))
    out[0] = jnp.concatenate(found, -1).astype(out.dtype)


def _gradients(call: DroppedCall, grad: Any, query: Any, key: Any, value: Any, kept: Any, *others: Any) -> None:
    """One block of the gradient of queries; and those of keys and values, once those of all queries are summed."""
    *mask, by_query, by_key, by_value, keys, values = others
    of_query: list[jax.Array] = []
    of_key: list[jax.Array | float] = [0.0] * call.block.shared
    of_value: list[jax.Array | float] = [0.0] * call.block.shared
    width, value_width = call.sizes.width, call.sizes.value_width
    for shared, head in _heads(call):
        rows, given = _columns(query, head, width), _columns(grad, head, value_width)
        own = _columns(key, shared, width)
        weights = _weights(call, head, rows, own, mask)
        factors = _factors(call, kept, head)
        by_weights = _dot(given, _columns(value, shared, value_width), (1, 1)) * factors
        inner = jnp.sum(weights * by_weights, axis=-1, keepdims=True)
        by_scores = (weights * (by_weights - inner) * call.scale).astype(rows.dtype)
        of_query.append(_dot(by_scores, own, (1, 0)))
        of_key[shared] += _dot(by_scores, rows, (0, 0))
        of_value[shared] += _dot((weights * factors).astype(given.dtype), given, (0, 0))
    by_query[0] = jnp.concatenate(of_query, -1).astype(by_query.dtype)
    step = pl.program_id(2)
    for total, parts, result in ((keys, of_key, by_key), (values, of_value, by_value)):
        part = jnp.concatenate(parts, -1)
        total[...] = jnp.where(step == 0, part, total[...] + part)

        @pl.when(step == pl.num_programs(2) - 1)
        def _(total: Any = total, result: Any = result) -> None:
            result[0] = total[...].astype(result.dtype)


def _heads(call: DroppedCall) -> Iterator[tuple[int, int]]:
    """The heads of the queries in a step, each with its head of the keys: (of the keys, of the queries)."""
    return ((head // call.sizes.groups, head) for head in range(call.heads))


def _columns(rows: Any, head: int, width: int) -> jax.Array:
    """The rows of one head, [length, width]."""
    return rows[0, :, head * width : (head + 1) * width]


def _factors(call: DroppedCall, kept: Any, head: int) -> jax.Array:
    """What the weights of a head are multiplied by, float32 [queries, keys]."""
    return kept[0, head].astype(jnp.int32).astype(jnp.float32) * call.factor


def _weights(call: DroppedCall, head: int, query: jax.Array, key: jax.Array, mask: Sequence[Any]) -> jax.Array:
    """The weights of a head, float32 [queries, keys]; 0 for keys beyond the last."""
    scores = _dot(query, key, (1, 1)) * call.scale
    for added in mask:
        scores = scores + added[0, head if added.shape[1] > 1 else 0]
    column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    if call.is_causal:
        first = pl.program_id(2) * call.block.queries
        row = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        scores = jnp.where(column <= row, scores, -jnp.inf)
    if scores.shape[1] > call.sizes.keys:
        scores = jnp.where(column < call.sizes.keys, scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0.0, top) if call.is_safe else top
    exp = jnp.exp(scores - top)
    total = jnp.sum(exp, axis=-1, keepdims=True)
    return exp / (jnp.where(total == 0.0, 1.0, total) if call.is_safe else total)


def _dot(left: jax.Array, right: jax.Array, over: tuple[int, int]) -> jax.Array:
    """A product that sums over one dimension of each, in float32."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dims = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dims, precision=exact, preferred_element_type=jnp.float32)
