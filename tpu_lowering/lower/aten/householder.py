"""QR factors kept as reflections: a matrix with R above the diagonal and the reflections below it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


@lowers(aten.geqrf.default)
def geqrf(self: Any, *, out: tuple[TensorType, TensorType]) -> tuple[jax.Array, jax.Array]:
    """R and the reflections in one matrix, and the reflections' factors."""
    if self.size == 0:
        return jnp.zeros(out[0].shape, out[0].dtype), jnp.zeros(out[1].shape, out[1].dtype)
    transposed, tau = jnp.linalg.qr(self, mode="raw")
    return finish(jnp.swapaxes(transposed, -1, -2), out[0]), finish(tau, out[1])


@lowers(aten.linalg_householder_product.default)
def linalg_householder_product(self: Any, tau: Any, *, out: TensorType) -> jax.Array:
    """The first columns of the product of the reflections stored below ``self``'s diagonal."""
    return finish(jax.lax.linalg.householder_product(self, tau), out)


if hasattr(jax.lax.linalg, "ormqr"):  # JAX 0.7 lacks it, so the operator has no row there

    @lowers(aten.ormqr.default)
    def ormqr(
        self: Any, input2: Any, input3: Any, left: bool = True, transpose: bool = False, *, out: TensorType
    ) -> jax.Array:
        """Q @ input3 (input3 @ Q unless ``left``; Q^H for Q if ``transpose``), Q the product of all reflections."""
        return finish(jax.lax.linalg.ormqr(self, input2, input3, left=left, transpose=transpose), out)
