"""What splash attention is given besides known masks: columns for what is added to scores, and rows for lengths that
its blocks do not divide.

What is added to the scores of a key is the same for all queries, and so it can be a part of the product: the key gets
columns that hold it, the query ones. Numbers are cut into bfloat16s, so that the product is exact however the chip
multiplies. Where the width is no multiple of 128 the chip's layout has room for them: they cost nothing.

A query that no key is left of gives ``AttentionCall.empty``, and has no gradients. One whose keys all have large
finite numbers added sees all of them alike, as in eager: the numbers are made one, beside which a score vanishes. The
logsumexp cannot say of how many keys it is then, so in the gradient each has weight 1, and that of the result is
divided instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tpu_lowering.fuse.attention.calls import AttentionCall, visible
from tpu_lowering.fuse.attention.masks import LARGE
from tpu_lowering.ir.types import TensorType

COLUMNS = 8
"""How many a key gets: rows are of multiples of 8 elements."""
LEAST = float(jnp.finfo(jnp.bfloat16).min)
"""Stands for -inf: less than what splash attention's maximum starts with."""
OUTWEIGHING = LEAST / 2
"""Stands for all large finite numbers: more than that."""
UNSEEN = 1e30
"""A logsumexp beside which no key has a weight."""


def widened(call: AttentionCall) -> int:
    """Elements of a query or key that the kernel sees."""
    return call.query.shape[2] + (COLUMNS if call.biases else 0)


def operands(
    call: AttentionCall, query: jax.Array, key: jax.Array, value: jax.Array, added: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value with the columns and the lengths that the kernel has. ``added`` is ``calls.added_by``."""
    if added is not None:
        columns = [column.astype(key.dtype).reshape((*key.shape[:-1], 1)) for column in _columns(call, added)]
        shape = (*query.shape[:-1], COLUMNS)
        ones = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1) < len(columns)
        query = jnp.concatenate([query, ones.astype(query.dtype)], axis=-1)
        rest = jnp.zeros((*key.shape[:-1], COLUMNS - len(columns)), key.dtype)
        key = jnp.concatenate([key, *columns, rest], axis=-1)
    queries, keys = call.lengths
    return _lengthened(query, queries), _lengthened(key, keys), _lengthened(value, keys)


def of_queries(call: AttentionCall, results: Sequence[jax.Array], added: jax.Array | None) -> list[jax.Array]:
    """The results for queries that there are, and for those that no key is left of."""
    rows, *sums = (_of_queries_there_are(call, one) for one in results)
    if added is None or not call.excludes:
        return [rows, *sums]
    alive = jnp.any(visible(call, added), axis=-1, keepdims=True)
    alive = _of_heads(call, alive) if call.together else alive
    return [jnp.where(alive, rows, call.empty), *(jnp.where(alive[..., 0], lse, 0) for lse in sums)]


def _of_queries_there_are(call: AttentionCall, result: jax.Array) -> jax.Array:
    """A result [heads, queries, ...] without the queries that lengthen it. It is cut with the leading sizes of the
    scores, in which a product takes it: XLA then cuts it as it is read, which it does not through a reshape."""
    count, leading = call.query.shape[1], call.leading or call.outer
    sizes = result.shape[len(call.outer) :]
    if sizes[0] == count:
        return result
    cut = jax.lax.slice_in_dim(result.reshape((*leading, *sizes)), 0, count, axis=len(leading))
    return cut.reshape((*call.outer, count, *sizes[1:]))


def given(
    call: AttentionCall, grad: jax.Array, result: jax.Array, logsumexp: jax.Array, added: jax.Array | None
) -> list[jax.Array]:
    """The gradient of the result, the result and the logsumexp, as the kernel has to be given them."""
    if added is not None and call.excludes:
        alive = _of_heads(call, jnp.any(visible(call, added), axis=-1, keepdims=True))
        logsumexp = jnp.where(alive[..., 0], logsumexp, 0)
    if added is not None and call.outweighs:
        seen = visible(call, added)
        ordinary = jnp.any(seen & (added > LARGE), axis=-1, keepdims=True)
        count = jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1)
        weight = _of_heads(call, jnp.where(ordinary, 1.0, 1.0 / count))
        grad = (grad * weight).astype(grad.dtype)
    queries, _ = call.lengths
    return [_lengthened(grad, queries), _lengthened(result, queries), _lengthened(logsumexp, queries, -1, UNSEEN)]


def cut(rows: jax.Array, type_: TensorType) -> jax.Array:
    """The rows and columns that there are of a gradient."""
    return rows[:, : type_.shape[1], : type_.shape[2]]


def _columns(call: AttentionCall, added: jax.Array) -> list[jax.Array]:
    """Columns [heads of keys, keys, 1] whose sum is added to the scores."""
    held = jnp.where(added == -jnp.inf, LEAST, jnp.where(added <= LARGE, OUTWEIGHING, added))
    keys = call.key.shape[1]
    held = jnp.broadcast_to(held, (*call.leading[:-1], call.leading[-1] // call.groups, 1, keys)).reshape(-1, keys, 1)
    if call.narrow:
        return [held]
    columns: list[jax.Array] = []
    for _ in range(3):  # 8 bits of the 24 in each
        columns.append(held.astype(jnp.bfloat16).astype(jnp.float32))
        held = held - columns[-1]
    return columns


def _of_heads(call: AttentionCall, x: jax.Array) -> jax.Array:
    """[..., queries or 1, 1], of the scores' leading sizes or 1, as [heads, queries or 1, 1]."""
    return jnp.broadcast_to(x, (*call.leading, *x.shape[-2:])).reshape((-1, *x.shape[-2:]))


def _lengthened(rows: jax.Array, length: int, axis: int = -2, value: float = 0.0) -> jax.Array:
    """[..., rows, width], or another axis of rows, with more rows."""
    missing = length - rows.shape[axis]
    padding = [(0, missing if at - rows.ndim == axis else 0) for at in range(rows.ndim)]
    return jnp.pad(rows, padding, constant_values=value) if missing else rows
