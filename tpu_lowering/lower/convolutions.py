"""``ir.convolutions`` in JAX."""

from __future__ import annotations

import jax

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish


def convolve_channels(
    x: jax.Array, weight: jax.Array, bias: jax.Array | None, before: int, after: int, dilation: int, *, out: TensorType
) -> jax.Array:
    """A sum of shifted products, which XLA fuses with the work around it."""
    wide, length = compute_dtype(out.dtype), out.shape[-1]
    padded = jax.lax.pad(x, cast(0, x.dtype), ((0, 0, 0), (0, 0, 0), (before, after, 0)))
    summed: jax.Array | None = None
    for tap in range(weight.shape[-1]):
        seen = padded[..., tap * dilation : tap * dilation + length]
        product = cast(seen, wide) * cast(weight[:, :, tap], wide)
        summed = product if summed is None else summed + product
    assert summed is not None, "a kernel has an element"
    return finish(summed if bias is None else summed + cast(bias, wide)[:, None], out)
