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
    """One ``dot_general``, whose result XLA lays out in the order of what uses it.

    XLA for the CPU has no product of narrow floats over several axes; there they are widened first.
    """
    wide = compute_dtype(out.dtype)
    kept = out.dtype if bias is None else wide  # a TPU rounds what it has summed in float32 as it writes it
    product = functools.partial(jnp.einsum, equation, preferred_element_type=kept)

    def widened(*factors: jax.Array) -> jax.Array:
        return cast(jnp.einsum(equation, *(cast(factor, wide) for factor in factors)), kept)

    if left.dtype == wide:
        result = product(left, right)
    else:
        result = jax.lax.platform_dependent(left, right, cpu=widened, default=product)
    return finish(result if bias is None else cast(bias, wide) + result, out)
