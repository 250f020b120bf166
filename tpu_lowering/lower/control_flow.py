"""Control flow in JAX. Regions are Python functions of JAX arrays that return tuples.

``out`` is the tuple of result types, as in the lowering table. Values that a loop carries are converted to their
types at every turn, since JAX counts a type that came from a Python number as another one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.matmul import product
from tpu_lowering.lower.aten.promotion import cast, finish
from tpu_lowering.lower.precision import exact

Arrays = tuple[Any, ...]
Types = tuple[TensorType, ...]
Region = Callable[..., Arrays]


def cond(predicate: Any, if_true: Region, if_false: Region, operands: Arrays, *, out: Types) -> Arrays:
    """``lax.cond``: only the region that is chosen runs."""
    branches = (lambda *given, region=region: _typed(region(*given), out) for region in (if_true, if_false))
    return jax.lax.cond(jnp.reshape(predicate, ()), *branches, *operands)


def while_loop(condition: Region, body: Region, carried: Arrays, extra: Arrays, *, out: Types) -> Arrays:
    """``lax.while_loop``; ``extra`` is the same at every turn."""
    return jax.lax.while_loop(
        lambda carry: jnp.reshape(condition(*carry, *extra)[0], ()),
        lambda carry: _typed(body(*carry, *extra), out),
        _typed(carried, out),
    )


def scan(combine: Region, init: Arrays, rows: Arrays, extra: Arrays, *, out: Types) -> Arrays:
    """``lax.scan`` over the first dimension of ``rows``."""

    def step(carry: Arrays, row: Arrays) -> tuple[Arrays, Arrays]:
        results = combine(*carry, *row, *extra)
        return _typed(results[: len(init)], out), results[len(init) :]

    carry, steps = jax.lax.scan(step, _typed(init, out), rows)
    return (*carry, *steps)


def map_rows(function: Region, rows: Arrays, extra: Arrays, *, out: Types) -> Arrays:
    """``lax.map`` over the first dimension of ``rows``."""
    return jax.lax.map(lambda row: function(*row, *extra), rows)


@functools.partial(exact, multiplies="matrices")
def flex_attention(
    query: Any,
    key: Any,
    value: Any,
    score: Region,
    mask: Region,
    scale: float,
    score_extra: Arrays,
    mask_extra: Arrays,
    *,
    out: Types,
) -> Arrays:
    """The rules are vectorised over batch, head, row and column; scores are at least float32. See ``ir.control_flow``.

    A fully masked row gives 0.
    """
    dtype = jnp.promote_types(query.dtype, np.float32)
    key, value = (_as_many_heads(operand, query) for operand in (key, value))
    scores = product(cast(query, dtype), jnp.swapaxes(cast(key, dtype), -1, -2)) * cast(scale, dtype)
    indices = tuple(jnp.arange(size, dtype=np.int32) for size in scores.shape)
    scores = jnp.where(
        _vectorised(mask, len(mask_extra))(*indices, *mask_extra)[0],
        cast(_vectorised(score, len(score_extra), scores=1)(scores, *indices, *score_extra)[0], dtype),
        -np.inf,
    )
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    exp = jnp.exp(scores - jnp.where(top == -np.inf, 0, top))
    total = jnp.sum(exp, axis=-1, keepdims=True)
    weights = cast(exp / jnp.where(total == 0, 1, total), query.dtype)
    logsumexp = jnp.where(top == -np.inf, 0, top) + jnp.log(total)
    results = (product(weights, value), logsumexp[..., 0] / math.log(2), top[..., 0] / math.log(2))
    return tuple(finish(result, type_) for result, type_ in zip(results, out, strict=True))


def _vectorised(region: Region, extra: int, scores: int = 0) -> Region:
    """A region of scalars as a function of all scores and of the indices along their four dimensions."""
    for dim in reversed(range(4)):
        axes = [0] * scores + [0 if index == dim else None for index in range(4)] + [None] * extra
        region = jax.vmap(region, in_axes=axes)
    return region


def _as_many_heads(operand: Any, query: Any) -> jax.Array:
    """Key or value with the query's batch and number of heads."""
    operand = jnp.repeat(operand, query.shape[1] // operand.shape[1], axis=1)
    return jnp.broadcast_to(operand, (query.shape[0], *operand.shape[1:]))


def _typed(values: Sequence[Any], types: Types) -> Arrays:
    """Values in exactly the given element types; ``types`` may be longer."""
    return tuple(jax.lax.convert_element_type(v, t.dtype) for v, t in zip(values, types, strict=False))
