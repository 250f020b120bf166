"""Matrix products. Narrow floats are multiplied as they are and accumulated in float32, the MXU's own way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def product(x: Any, y: Any) -> jax.Array:
    """The (batched) matrix product, in the compute dtype of the operands' dtype."""
    return jnp.matmul(x, y, preferred_element_type=compute_dtype(x.dtype))


def rounded_product(x: Any, y: Any) -> jax.Array:
    """The (batched) matrix product of two arrays of one dtype, in that dtype.

    A TPU rounds what it has summed in float32 as it writes it, and XLA computes what follows on that; of a product in
    float32 it makes an operation of its own that rounds. XLA for the CPU sums as wide as its results are.
    """
    if compute_dtype(x.dtype) == x.dtype:
        return product(x, y)

    def narrow(x: Any, y: Any) -> jax.Array:
        return jnp.matmul(x, y, preferred_element_type=x.dtype)

    return jax.lax.platform_dependent(x, y, cpu=lambda x, y: cast(product(x, y), x.dtype), default=narrow)


def _plus_product(self: Any, x: Any, y: Any, beta: Any, alpha: Any, out: TensorType) -> jax.Array:
    """beta * self + alpha * (x @ y); with beta 0, ``self`` is ignored, NaN or not."""
    dtype = compute_dtype(out.dtype)
    result = cast(product(x, y), dtype)
    if alpha != 1:
        result = cast(alpha, dtype) * result
    if beta == 0:
        return finish(jnp.broadcast_to(result, out.shape), out)
    bias = cast(self, dtype)
    return finish((bias if beta == 1 else cast(beta, dtype) * bias) + result, out)


@lowers(aten.mm.default, multiplies="matrices")
def mm(self: Any, mat2: Any, *, out: TensorType) -> jax.Array:
    """[m, k] @ [k, n]."""
    return finish(rounded_product(self, mat2), out)


@lowers(aten.bmm.default, multiplies="matrices")
def bmm(self: Any, mat2: Any, *, out: TensorType) -> jax.Array:
    """[b, m, k] @ [b, k, n]."""
    return finish(rounded_product(self, mat2), out)


@lowers(aten.mv.default, multiplies="matrices")
def mv(self: Any, vec: Any, *, out: TensorType) -> jax.Array:
    """[m, k] @ [k]."""
    return finish(product(self, vec), out)


@lowers(aten.dot.default, multiplies="matrices")
def dot(self: Any, tensor: Any, *, out: TensorType) -> jax.Array:
    """[k] @ [k]."""
    return finish(product(self, tensor), out)


@lowers(aten.vdot.default, multiplies="matrices")
def vdot(self: Any, other: Any, *, out: TensorType) -> jax.Array:
    """conj([k]) @ [k]."""
    return finish(product(jnp.conj(self), other), out)


@lowers(aten.addmm.default, multiplies="matrices")
def addmm(self: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1, out: TensorType) -> jax.Array:
    """beta * self + alpha * ([m, k] @ [k, n])."""
    return _plus_product(self, mat1, mat2, beta, alpha, out)


@lowers(aten.addmv.default, multiplies="matrices")
def addmv(self: Any, mat: Any, vec: Any, *, beta: Any = 1, alpha: Any = 1, out: TensorType) -> jax.Array:
    """beta * self + alpha * ([m, k] @ [k])."""
    return _plus_product(self, mat, vec, beta, alpha, out)


@lowers(aten.baddbmm.default, multiplies="matrices")
def baddbmm(self: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1, out: TensorType) -> jax.Array:
    """beta * self + alpha * ([b, m, k] @ [b, k, n])."""
    return _plus_product(self, batch1, batch2, beta, alpha, out)


@lowers(aten.addbmm.default, multiplies="matrices")
def addbmm(self: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1, out: TensorType) -> jax.Array:
    """beta * self + alpha * (the sum over b of [b, m, k] @ [b, k, n])."""
    rows = jnp.transpose(batch1, (1, 0, 2)).reshape(batch1.shape[1], -1)
    return _plus_product(self, rows, batch2.reshape(-1, batch2.shape[2]), beta, alpha, out)


@lowers(aten._trilinear.default)
def trilinear(
    i1: Any,
    i2: Any,
    i3: Any,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
    *,
    out: TensorType,
) -> jax.Array:
    """The product of three tensors, each with new dimensions where told, summed over ``sumdim``."""
    dtype = compute_dtype(out.dtype)
    parts = [jnp.expand_dims(cast(x, dtype), sorted(dims)) for x, dims in ((i1, expand1), (i2, expand2), (i3, expand3))]
    return finish(jnp.sum(parts[0] * parts[1] * parts[2], axis=tuple(sumdim)), out)


@lowers(aten._int_mm.default)
def int_mm(self: Any, mat2: Any, *, out: TensorType) -> jax.Array:
    """int8 [m, k] @ int8 [k, n], accumulated in int32."""
    return finish(jnp.matmul(self, mat2, preferred_element_type=np.dtype(np.int32)), out)
