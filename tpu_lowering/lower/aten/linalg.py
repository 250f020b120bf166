"""Factorisations and solvers. Shapes are [..., m, n] with any batch dimensions in front.

Where eager would raise for a singular or indefinite matrix, results here are inf or NaN and ``info`` is 1:
a compiled program cannot raise. Pivots count from 1, as LAPACK's do.

The factors that ``det`` and ``slogdet`` return for their gradients are those of the transpose if the matrix
is real: eager does so for a contiguous matrix, and autograd's formulas count on it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

Types = tuple[TensorType, ...]
Arrays = tuple[jax.Array, ...]


def _adjoint(x: jax.Array) -> jax.Array:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def _finish_all(values: Any, out: Types) -> Arrays:
    """Each value as its type; where ``out`` has an empty result, eager leaves that one out."""
    return tuple(
        jnp.zeros(type_.shape, type_.dtype) if value.size != type_.size else finish(value, type_)
        for value, type_ in zip(values, out, strict=True)
    )


def _saved_lu(a: Any) -> tuple[jax.Array, jax.Array]:
    """Packed factors and pivots (from 0) of the transpose of a real matrix, or of a complex matrix."""
    lu, pivots, _ = jax.lax.linalg.lu(a if jnp.iscomplexobj(a) else jnp.swapaxes(a, -1, -2))
    return lu, pivots


def _info(result: jax.Array) -> jax.Array:
    """1 for each matrix of the result that is not finite, else 0."""
    return (~jnp.all(jnp.isfinite(result), axis=(-2, -1))).astype(np.int32)


def _solve_triangular(
    a: Any, b: Any, *, upper: bool, left: bool = True, unit: bool = False, adjoint: bool = False
) -> jax.Array:
    """x with a @ x = b (x @ a = b unless ``left``), batch dimensions broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = jnp.broadcast_to(a, batch + a.shape[-2:])
    b = jnp.broadcast_to(b, batch + b.shape[-2:])
    return jax.lax.linalg.triangular_solve(
        a, b, left_side=left, lower=not upper, unit_diagonal=unit, transpose_a=adjoint, conjugate_a=adjoint
    )


@lowers(aten._linalg_check_errors.default)
def linalg_check_errors(info: Any, api_name: str, *, is_matrix: bool, out: None) -> None:
    """Nothing: eager raises here if ``info`` is not 0."""


@lowers(aten.linalg_cholesky_ex.default)
def linalg_cholesky_ex(self: Any, *, upper: bool = False, check_errors: bool = False, out: Types) -> Arrays:
    """The factor L (or L^H if ``upper``) with L @ L^H = self, and info. Only the one triangle is read."""
    factor = _cholesky(self, upper)
    return _finish_all((factor, _info(factor)), out)


def _cholesky(a: Any, upper: bool) -> jax.Array:
    lower = jnp.linalg.cholesky(_adjoint(a) if upper else a, symmetrize_input=False)
    return _adjoint(lower) if upper else lower


@lowers(aten.cholesky.default)
def cholesky(self: Any, upper: bool = False, *, out: TensorType) -> jax.Array:
    """The factor L (or L^H if ``upper``) with L @ L^H = self."""
    return finish(_cholesky(self, upper), out)


@lowers(aten.cholesky_solve.default, aten._cholesky_solve_helper.default)
def cholesky_solve(self: Any, input2: Any, upper: bool = False, *, out: TensorType) -> jax.Array:
    """x with (L @ L^H) @ x = self, where ``input2`` is L, or L^H if ``upper``."""
    lower = _adjoint(input2) if upper else input2
    half = _solve_triangular(lower, self, upper=False)
    return finish(_solve_triangular(lower, half, upper=False, adjoint=True), out)


@lowers(aten.cholesky_inverse.default)
def cholesky_inverse(self: Any, upper: bool = False, *, out: TensorType) -> jax.Array:
    """The inverse of L @ L^H, where ``self`` is L, or L^H if ``upper``."""
    eye = jnp.eye(self.shape[-1], dtype=self.dtype)
    return cholesky_solve(eye, self, upper, out=out)


@lowers(aten.linalg_solve_triangular.default)
def linalg_solve_triangular(
    self: Any, B: Any, *, upper: bool, left: bool = True, unitriangular: bool = False, out: TensorType
) -> jax.Array:
    """x with self @ x = B, or x @ self = B unless ``left``."""
    return finish(_solve_triangular(self, cast(B, out.dtype), upper=upper, left=left, unit=unitriangular), out)


@lowers(aten.triangular_solve.default)
def triangular_solve(
    self: Any, A: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False, *, out: Types
) -> Arrays:
    """x with A @ x = self (A^T @ x, if ``transpose``), and A."""
    coefficient = jnp.swapaxes(A, -1, -2) if transpose else A
    x = _solve_triangular(coefficient, self, upper=upper != transpose, unit=unitriangular)
    return finish(x, out[0]), finish(jnp.broadcast_to(A, out[1].shape), out[1])


@lowers(aten.linalg_inv_ex.default)
def linalg_inv_ex(A: Any, *, check_errors: bool = False, out: Types) -> Arrays:
    """The inverse, and info."""
    inverse = jnp.linalg.inv(A)
    return _finish_all((inverse, _info(inverse)), out)


@lowers(aten.linalg_lu_factor_ex.default)
def linalg_lu_factor_ex(A: Any, *, pivot: bool = True, check_errors: bool = False, out: Types) -> Arrays:
    """L and U in one matrix, the pivots, and info."""
    lu, pivots, _ = jax.lax.linalg.lu(A)
    return _finish_all((lu, pivots + 1, _info(lu)), out)


@lowers(aten.linalg_lu.default)
def linalg_lu(A: Any, *, pivot: bool = True, out: Types) -> Arrays:
    """P, L and U with P @ L @ U = A."""
    lu, _, order = jax.lax.linalg.lu(A)
    return _finish_all(_unpack(lu, order), out)


def _unpack(lu: jax.Array, order: jax.Array) -> Arrays:
    """P, L and U from the packed factors; ``order`` is the permutation of the rows."""
    m, n = lu.shape[-2:]
    k = min(m, n)
    lower = jnp.tril(lu[..., :k], -1) + jnp.eye(m, k, dtype=lu.dtype)
    permutation = jnp.swapaxes(jax.nn.one_hot(order, m, dtype=lu.dtype), -1, -2)
    return permutation, lower, jnp.triu(lu[..., :k, :])


def _order(pivots: Any, m: int) -> jax.Array:
    """The permutation that swapping row i with row ``pivots[i]`` (from 1), in turn, makes."""
    return jax.lax.linalg.lu_pivots_to_permutation(cast(pivots, np.dtype(np.int32)) - 1, m)


@lowers(aten.lu_unpack.default)
def lu_unpack(
    LU_data: Any, LU_pivots: Any, unpack_data: bool = True, unpack_pivots: bool = True, *, out: Types
) -> Arrays:
    """P, L and U from packed factors and pivots."""
    return _finish_all(_unpack(LU_data, _order(LU_pivots, LU_data.shape[-2])), out)


@lowers(aten.linalg_lu_solve.default)
def linalg_lu_solve(
    LU: Any, pivots: Any, B: Any, *, left: bool = True, adjoint: bool = False, out: TensorType
) -> jax.Array:
    """x with A @ x = B (x @ A = B unless ``left``; A^H for A if ``adjoint``) by A's factors."""
    if not left:
        flipped = TensorType(out.element, (*out.shape[:-2], out.shape[-1], out.shape[-2]))
        return _adjoint(linalg_lu_solve(LU, pivots, _adjoint(B), adjoint=not adjoint, out=flipped))
    batch = out.shape[:-2]
    permutation, lower, upper = _unpack(LU, _order(pivots, LU.shape[-2]))
    permutation, right = jnp.broadcast_to(permutation, batch + LU.shape[-2:]), jnp.broadcast_to(B, out.shape)
    if adjoint:
        half = _solve_triangular(upper, right, upper=True, adjoint=True)
        half = _solve_triangular(lower, half, upper=False, unit=True, adjoint=True)
        return finish(permutation @ half, out)
    half = _solve_triangular(lower, jnp.swapaxes(permutation, -1, -2) @ right, upper=False, unit=True)
    return finish(_solve_triangular(upper, half, upper=True), out)


@lowers(aten._linalg_solve_ex.default)
def linalg_solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False, out: Types) -> Arrays:
    """x with A @ x = B (x @ A = B unless ``left``), A's packed factors, pivots, and info."""
    lu, pivots, _ = jax.lax.linalg.lu(A)
    is_vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    right = B[..., None] if is_vector else B
    shape = (*out[0].shape, 1) if is_vector else out[0].shape
    x = linalg_lu_solve(lu, pivots + 1, right, left=left or is_vector, out=TensorType(out[0].element, shape))
    return _finish_all((x, lu, pivots + 1, _info(lu)), out)


@lowers(aten._linalg_det.default)
def linalg_det(A: Any, *, out: Types) -> Arrays:
    """The determinant, and the packed factors and pivots that gave it."""
    lu, pivots = _saved_lu(A)
    return _finish_all((jnp.prod(jnp.diagonal(lu, 0, -2, -1), axis=-1) * _parity(pivots, A), lu, pivots + 1), out)


def _parity(pivots: jax.Array, A: Any) -> jax.Array:
    """1 or -1 for an even or odd number of swapped rows."""
    swaps = jnp.sum(pivots != jnp.arange(pivots.shape[-1]), axis=-1)
    return jnp.where(swaps % 2 == 0, 1, -1).astype(A.dtype)


@lowers(aten._linalg_slogdet.default)
def linalg_slogdet(A: Any, *, out: Types) -> Arrays:
    """The determinant's sign and the logarithm of its size, and the packed factors and pivots."""
    lu, pivots = _saved_lu(A)
    diagonal = jnp.diagonal(lu, 0, -2, -1)
    sign = jnp.prod(jnp.sign(diagonal), axis=-1) * _parity(pivots, A)
    return _finish_all((sign, jnp.sum(jnp.log(jnp.abs(diagonal)), axis=-1), lu, pivots + 1), out)


@lowers(aten._linalg_eigh.default)
def linalg_eigh(A: Any, UPLO: str = "L", compute_v: bool = True, *, out: Types) -> Arrays:
    """Eigenvalues, ascending, and eigenvectors of a Hermitian matrix, of which one triangle is read."""
    values_and_vectors = jnp.linalg.eigh(A, UPLO=UPLO.upper(), symmetrize_input=False)
    return _finish_all(values_and_vectors, out)


@lowers(aten.linalg_eig.default)
def linalg_eig(self: Any, *, out: Types) -> Arrays:
    """Complex eigenvalues, in LAPACK's order, and eigenvectors of length 1. XLA has this for CPUs only."""
    return _finish_all(jnp.linalg.eig(self), out)


@lowers(aten._linalg_svd.default)
def linalg_svd(
    A: Any, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None, out: Types
) -> Arrays:
    """U, the singular values, descending, and V^H."""
    if not compute_uv:
        values = jnp.linalg.svd(A, compute_uv=False)
        return jnp.zeros(out[0].shape, out[0].dtype), finish(values, out[1]), jnp.zeros(out[2].shape, out[2].dtype)
    return _finish_all(jnp.linalg.svd(A, full_matrices=full_matrices), out)


@lowers(aten.linalg_qr.default)
def linalg_qr(A: Any, mode: str = "reduced", *, out: Types) -> Arrays:
    """Q and R; without Q for mode ``"r"``."""
    if mode == "r":
        return jnp.zeros(out[0].shape, out[0].dtype), finish(jnp.linalg.qr(A, mode="r"), out[1])
    return _finish_all(jnp.linalg.qr(A, mode=mode), out)


@lowers(aten.linalg_matrix_exp.default)
def linalg_matrix_exp(self: Any, *, out: TensorType) -> jax.Array:
    """The matrix exponential."""
    return finish(jax.scipy.linalg.expm(widen(self)), out)


@lowers(aten.linalg_pinv.atol_rtol_tensor)
def linalg_pinv(
    self: Any, *, atol: Any = None, rtol: Any = None, hermitian: bool = False, out: TensorType
) -> jax.Array:
    """The pseudo-inverse; singular values up to max(atol, rtol * the largest) count as 0."""
    if hermitian:
        values, u = jnp.linalg.eigh(self, symmetrize_input=False)
        vh, values = _adjoint(u) * jnp.sign(values)[..., None], jnp.abs(values)
    else:
        u, values, vh = jnp.linalg.svd(self, full_matrices=False)
    largest = jnp.max(values, axis=-1, initial=0)
    if rtol is None:
        default = float(jnp.finfo(values.dtype).eps) * max(self.shape[-2:])
        rtol = default if atol is None else jnp.where(atol > 0, 0.0, default)
    cutoff = jnp.maximum(0 if atol is None else atol, rtol * largest)[..., None]
    inverse = jnp.where(values > cutoff, 1 / jnp.where(values > cutoff, values, 1), 0)
    return finish((_adjoint(vh) * inverse[..., None, :]) @ _adjoint(u), out)
