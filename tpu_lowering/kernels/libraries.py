"""JAX functions for operators that other libraries define, found by name: nothing is imported, nothing registered.

A function that the user registers for the same operator goes first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir import chips

ROWS_AT_ONCE = 64
"""Rows of a group that one product takes on the CPU: half a block a group is computed for nothing."""

BLOCKS = (512, 256, 128)
"""Rows that megablox takes at once."""

MEGABLOX = chips.find("v6e")
"""The chip on which rows are multiplied by megablox. For it libtpu 0.0.52 refuses XLA's own product of some sizes: that
needs more VMEM than it is given. Of other sizes both move as many bytes. On tpu7x and v5e XLA's moves fewer."""


def sizes_of(offsets: Any) -> jax.Array:
    """How many rows each group has, from where each ends: int [g] to int [g]."""
    return jnp.diff(offsets, prepend=jnp.zeros(1, offsets.dtype))


def rows_times_groups(rows: Any, weights: Any, offsets: Any, transposed: bool = False, dtype: Any = None) -> jax.Array:
    """Each row times the matrix of its group: [m, k], [g, k, n], ends of groups int [g] to [m, n].

    Rows past the last group are zeros. If ``transposed``, matrices are [g, n, k]: on a TPU those of the other form are
    copied for it. Sums are of float32, or of the operands' type if that is wider, and rounded once to ``dtype``, by
    default that of the rows.
    """
    is_taken = compat.traced_chip() in MEGABLOX.device_kinds and rows.shape[0] % min(BLOCKS) == 0
    on_tpu = functools.partial(by_megablox if is_taken else _ragged, transposed=transposed)
    blocked = functools.partial(_blocks_times_groups, transposed=transposed)
    return _rounded_once(blocked, on_tpu, rows, weights, sizes_of(offsets), dtype)


def _rounded_once(on_cpu: Any, on_tpu: Any, left: Any, right: Any, sizes: Any, dtype: Any) -> jax.Array:
    """A product of groups in a type. A TPU sums in float32 whatever it writes, and XLA makes an operation of its own of
    what rounds that; XLA for the CPU sums as wide as its results are."""
    dtype = left.dtype if dtype is None else dtype
    wide = jnp.promote_types(left.dtype, jnp.float32)

    def widened(left: Any, right: Any, sizes: Any) -> jax.Array:
        return on_cpu(left, right, sizes, preferred_element_type=wide).astype(dtype)

    narrow = functools.partial(on_tpu, preferred_element_type=dtype)
    return jax.lax.platform_dependent(left, right, sizes, cpu=widened, default=narrow)


def _ragged(rows: Any, weights: Any, sizes: Any, transposed: bool, **options: Any) -> jax.Array:
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2 if transposed else 1,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[0],
    )
    return jax.lax.ragged_dot_general(rows, weights, sizes, numbers, **options)


def by_megablox(
    rows: Any, weights: Any, sizes: Any, transposed: bool, preferred_element_type: Any, interpret: bool = False
) -> jax.Array:
    """``_ragged`` as JAX's own kernel for experts; of rows of which ``min(BLOCKS)`` divides how many there are.

    It leaves rows past the last group as they are in memory: here they are zeros of the last one.
    """
    from jax.experimental.pallas.ops.tpu import megablox

    count, end = rows.shape[0], jnp.sum(sizes)
    given = jnp.where((jnp.arange(count) < end)[:, None], rows, jnp.zeros((), rows.dtype))
    sizes = sizes.at[-1].add(count - end).astype(jnp.int32)
    blocks = (next(size for size in BLOCKS if count % size == 0), 1024, 1024)
    with compat.enable_x64(False):
        return megablox.gmm(given, weights, sizes, preferred_element_type, blocks, None, None, transposed, interpret)


def _blocks_times_groups(rows: Any, weights: Any, sizes: Any, transposed: bool, **options: Any) -> jax.Array:
    """``_ragged`` for XLA's CPU compiler, which multiplies every row by the matrices of all groups.

    Blocks of rows are multiplied one after the other, those of each group from its first row on; what a group's last
    block computes for rows of later groups is overwritten by theirs. Matrices are taken transposed: so are experts
    stored.
    """
    count, size = rows.shape[0], max(1, min(ROWS_AT_ONCE, rows.shape[0]))
    ends, blocks = jnp.cumsum(sizes), -(-sizes // size)
    last = jnp.cumsum(blocks)
    padded, stored = jnp.pad(rows, ((0, size), (0, 0))), weights if transposed else weights.swapaxes(1, 2)

    def multiply(block: Any, result: jax.Array) -> jax.Array:
        group = jnp.searchsorted(last, block, side="right", method="compare_all")
        at = ends[group] - sizes[group] + (block - last[group] + blocks[group]) * size
        some = jax.lax.dynamic_slice_in_dim(padded, at, size)
        matrix = jax.lax.dynamic_index_in_dim(stored, group, keepdims=False)
        product = jax.lax.dot_general(some, matrix, (((1,), (1,)), ((), ())), **options)
        return jax.lax.dynamic_update_slice_in_dim(result, product, at, 0)

    dtype = options.get("preferred_element_type") or rows.dtype
    result = jnp.zeros((count + size, stored.shape[1]), dtype)
    result = jax.lax.fori_loop(jnp.zeros_like(last[-1]), last[-1], multiply, result)[:count]
    return jnp.where((jnp.arange(count) < ends[-1])[:, None], result, jnp.zeros((), dtype))


def groups_of_rows(left: Any, right: Any, offsets: Any, dtype: Any = None) -> jax.Array:
    """leftᵀ @ right over the rows of each group: [k, m], [k, n], ends of groups int [g] to [g, m, n].

    As for ``rows_times_groups``, sums are of float32 and rounded once; ``dtype`` is that of ``left`` by default.
    """
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    ragged = functools.partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=numbers)
    return _rounded_once(ragged, ragged, left, right, sizes_of(offsets), dtype)


def grouped_mm(input: Any, weight: Any, offs: Any) -> jax.Array:
    """The matrix products of a mixture of experts, rows sorted by expert."""
    return rows_times_groups(input, weight, offs)


def grouped_mm_backward(input: Any, weight: Any, offs: Any, grad_output: Any) -> tuple[jax.Array, jax.Array]:
    """The gradients of ``grouped_mm`` by its input and by its weight."""
    by_input = rows_times_groups(grad_output, weight.swapaxes(1, 2), offs)
    return by_input, groups_of_rows(input, grad_output, offs)


def flash_attention(q: Any, k: Any, v: Any, casual: bool = False) -> jax.Array:
    """torch_xla's ``flash_attention``, scores unscaled: all [batch, heads, length, width].

    JAX's Pallas kernel, with blocks as large as torch_xla's; ``casual`` is how torch_xla spells it.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as library

    queries, keys = min(512, q.shape[2]), min(512, k.shape[2])
    sizes = library.BlockSizes(block_q=queries, block_k_major=keys, block_k=keys, block_b=min(2, q.shape[0]))
    return library.flash_attention(q, k, v, causal=casual, sm_scale=1.0, block_sizes=sizes)


def _exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose products of float32 are not rounded to bfloat16, as JAX does on a TPU."""

    @functools.wraps(function)
    def computed(*args: Any) -> Any:
        wide = all(getattr(value, "dtype", None) != jnp.bfloat16 for value in args)
        with jax.default_matmul_precision("highest" if wide else "default"):
            return function(*args)

    return computed


LIBRARIES: dict[str, Callable[..., Any]] = {
    "transformers::grouped_mm_fallback": _exact(grouped_mm),
    "transformers::grouped_mm_fallback_backward": _exact(grouped_mm_backward),
    "xla::flash_attention": flash_attention,
}
