"""JAX's own library kernels for TPUs, run as plain JAX: the same results as in Pallas's interpreter."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jax.experimental.pallas.ops.tpu.matmul import matmul
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

import tpu_lowering
from tpu_lowering.ir.types import TensorType, element_type
from tpu_lowering.kernels import jaxprs, vectorized

# By name: the package has a function of the same name.
megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")

FLASH_BLOCKS = flash.BlockSizes(
    block_b=1, block_q=128, block_k_major=128, block_k=128, block_q_major_dkv=128, block_k_major_dkv=128,
    block_k_dkv=128, block_q_dkv=128, block_k_major_dq=128, block_k_dq=128, block_q_dq=128,
)  # fmt: skip
SPLASH_BLOCKS = splash.BlockSizes(
    block_q=128, block_kv=128, block_kv_compute=128, block_q_dkv=128, block_kv_dkv=128, block_kv_dkv_compute=128,
    block_q_dq=128, block_kv_dq=128,
)  # fmt: skip
CAUSAL = masks.CausalMask((256, 256))
LOCAL = masks.LocalMask((256, 256), (64, 0), 0)
TILES = (128, 128, 128)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of kernel calls, and its operands."""

    function: Callable[..., Any]
    operands: tuple[jax.Array, ...]


def numbers(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def int32(*values: Any) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The function, with the gradients of the sum of its result's elements."""

    def forward_and_backward(*operands: jax.Array) -> Any:
        result, backward = jax.vjp(function, *operands)
        return result, *backward(jnp.ones_like(result))

    return forward_and_backward


def causal_flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return flash.flash_attention(q, k, v, causal=True, block_sizes=FLASH_BLOCKS)


def flash_with_bias(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, segments: jax.Array) -> jax.Array:
    both = flash.SegmentIds(segments, segments)
    return flash.flash_attention(q, k, v, ab=bias, segment_ids=both, sm_scale=0.1, block_sizes=FLASH_BLOCKS)


def splash_attention(mask: masks.Mask) -> Callable[..., jax.Array]:
    """For two heads that each have keys of their own."""
    heads = masks.MultiHeadMask([mask, mask])

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        kernel = splash.make_splash_mha(heads, block_sizes=SPLASH_BLOCKS, head_shards=1, q_seq_shards=1)
        return kernel(q, k, v)

    return attention


def splash_of_shared_keys(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    heads = masks.MultiHeadMask([CAUSAL, CAUSAL])
    return splash.make_splash_mqa(heads, block_sizes=SPLASH_BLOCKS, head_shards=1, q_seq_shards=1)(q, k, v)


def paged(inline: bool) -> Callable[..., jax.Array]:
    def attention(*operands: jax.Array) -> jax.Array:
        return paged_attention(*operands, pages_per_compute_block=2, inline_seq_dim=inline)

    return attention


def ragged(*operands: jax.Array) -> jax.Array:
    return ragged_paged_attention(*operands, num_kv_pages_per_block=2, num_queries_per_block=8)


def grouped(transposed: bool = False) -> Callable[..., jax.Array]:
    def product(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
        return megablox.gmm(a, b, sizes, jnp.float32, TILES, transpose_rhs=transposed)

    return product


def grouped_into(a: jax.Array, b: jax.Array, sizes: jax.Array, out: jax.Array) -> jax.Array:
    """Groups 1 and 2 of four; the rows of the others keep their contents."""
    return megablox.gmm(a, b, sizes, jnp.float32, TILES, int32(1)[0], out)


def grouped_gradient(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    return megablox.tgmm(a, b, sizes, jnp.float32, TILES)


HEADS = (numbers(1, 2, 256, 128),) * 3
ROWS = (numbers(2, 256, 128),) * 3
SIZES = int32(100, 0, 130, 26)
PAGES = int32(*np.random.default_rng(0).permutation(16)[:12].reshape(3, 4))
CACHED = (numbers(3, 8, 128), numbers(2, 16, 16, 128), numbers(2, 16, 16, 128), int32(40, 13, 64), PAGES)
CASES = {
    "flash": Case(with_gradients(causal_flash), HEADS),
    "flash_bias": Case(flash_with_bias, (*HEADS, numbers(1, 2, 256, 256), int32([0] * 100 + [1] * 156))),
    "splash": Case(with_gradients(splash_attention(CAUSAL)), ROWS),
    "splash_local": Case(splash_attention(LOCAL), ROWS),
    "splash_shared_keys": Case(splash_of_shared_keys, (ROWS[0], numbers(256, 128), numbers(256, 128))),
    "paged": Case(paged(inline=True), CACHED),
    "paged_by_sequence": Case(paged(inline=False), CACHED),
    "ragged_paged": Case(
        ragged,
        (numbers(20, 8, 128), numbers(16, 16, 4, 128), int32(40, 13, 64), PAGES, int32(0, 5, 6, 20), int32(3)),
    ),
    "gmm": Case(grouped(), (numbers(256, 128), numbers(4, 128, 256), SIZES)),
    "gmm_transposed": Case(grouped(transposed=True), (numbers(256, 128), numbers(4, 256, 128), SIZES)),
    "gmm_into": Case(grouped_into, (numbers(256, 128), numbers(2, 128, 256), SIZES, numbers(256, 256))),
    "tgmm": Case(grouped_gradient, (numbers(128, 256), numbers(256, 128), SIZES)),
    "matmul": Case(
        lambda a, b: matmul(a, b, block_shape=(128, 128), block_k=128), (numbers(256, 384), numbers(384, 256))
    ),
}


def type_of(operand: jax.Array) -> TensorType:
    element = element_type(np.dtype(operand.dtype))
    assert element is not None
    return element[operand.shape]


@pytest.mark.parametrize("name", CASES)
def test_vectorized_is_interpreted(name: str) -> None:
    case = CASES[name]
    types = list(map(type_of, case.operands))
    closed = jaxprs.trace(case.function, types)
    calls = jaxprs.kernel_calls(closed)
    assert calls and not any(map(vectorized.why_not, calls))

    def run(how: Any) -> list[np.ndarray[Any, Any]]:
        with jaxprs.kernel_scope(types):
            return [np.asarray(x) for x in jax.jit(lambda *given: jaxprs.run(closed, given, how))(*case.operands)]

    for one, other in zip(run("vectorized"), run("interpret"), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


@tpu_lowering.kernel_op("library_kernels::flash")
def flash_operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return causal_flash(q, k, v)  # type: ignore[arg-type, return-value]


def test_flash_attention_as_an_operator() -> None:
    """Its index maps are int32: they cannot be traced where 64-bit types are on."""
    q, k, v = torch.randn(3, 1, 2, 256, 128, generator=torch.Generator().manual_seed(0)).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    result = torch.compile(lambda *given: flash_operator(*given) + 0, backend="helion_tpu", fullgraph=True)(q, k, v)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
