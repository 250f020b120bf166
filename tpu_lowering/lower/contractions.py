"""``ir.contractions`` in JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.precision import exact


@functools.partial(exact, multiplies="matrices")
def contract(
    equation: str, left: jax.Array, right: jax.Array, bias: jax.Array | None = None, *, out: TensorType
) -> jax.Array:
    """One ``dot_general``, whose result XLA lays out in the order of what uses it. The factor with the result's first
    axis comes first: XLA copies some of the products that are written the other way round.

    XLA for the CPU has no product of narrow floats over several axes; there they are widened first.
    """
    wide = compute_dtype(out.dtype)
    kept = out.dtype if bias is None else wide  # a TPU rounds what it has summed in float32 as it writes it
    product = functools.partial(_product, equation, kept)

    def widened(*factors: jax.Array) -> jax.Array:
        return cast(_product(equation, wide, *(cast(factor, wide) for factor in factors)), kept)

    if left.dtype == wide:
        result = product(left, right)
    else:
        result = jax.lax.platform_dependent(left, right, cpu=widened, default=product)
    return finish(result if bias is None else cast(bias, wide) + result, out)


def _product(equation: str, dtype: jnp.dtype, left: jax.Array, right: jax.Array) -> jax.Array:
    """The einsum of an equation, whose product is written with its axes in the order of the factors' own."""
    factors, wanted = equation.split("->")
    first, second = factors.split(",")
    if wanted[0] in second:
        first, second, left, right = second, first, right, left
    shared = [axis for axis in first if axis in second]
    names = "".join(dict.fromkeys(axis for axis in (*shared, *first, *second) if axis in wanted))
    result = jnp.einsum(f"{first},{second}->{names}", left, right, preferred_element_type=dtype)
    return result.transpose([names.index(axis) for axis in wanted])
