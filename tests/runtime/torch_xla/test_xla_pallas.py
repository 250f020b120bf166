"""torch_xla's own Pallas operators, and kernels made with its ``make_kernel_from_pallas``, in captured graphs."""

from __future__ import annotations

from typing import Any

import jax
import pytest
import torch
import torch_xla
from jax.experimental import pallas as pl
from torch_xla.experimental.custom_kernel import jax_import_guard, make_kernel_from_pallas

from tests.runtime.torch_xla.xla_watch import compiled, on_xla, same
from tpu_lowering import errors, register_kernel

jax_import_guard()


def add_kernel(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...] + y[...]


def add(x: jax.Array, y: jax.Array) -> jax.Array:
    return pl.pallas_call(add_kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x, y)


pallas_add = make_kernel_from_pallas(add, lambda x, y: [(x.shape, x.dtype)])


@torch.library.custom_op("tests_xla::add", mutates_args=())
def add_operator(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return pallas_add(x, y)


@add_operator.register_fake
def _(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


register_kernel(torch.ops.tests_xla.add)(pallas_add)


def test_a_kernel_made_with_make_kernel_from_pallas() -> None:
    x, y = torch.randn(8, 128), torch.randn(8, 128)
    with torch.no_grad():
        result = compiled(lambda x, y: torch.ops.tests_xla.add(x * 2, y) + 1)(*on_xla([x, y]))
    same(x * 2 + y + 1, result)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [128, 1024])
def test_flash_attention(causal: bool, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 64, generator=generator) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
    with torch.no_grad():
        result = compiled(lambda q, k, v: torch.ops.xla.flash_attention(q, k, v, causal))(*on_xla([q, k, v]))
    same(expected, result, rtol=1e-4, atol=2e-5)


def test_other_operators_of_torch_xla_are_refused() -> None:
    x, w, scale = on_xla([torch.randn(4, 8), torch.ones(6, 8, dtype=torch.int8), torch.ones(6)])
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(lambda *given: torch.ops.xla.quantized_matmul_int8(*given))(x, w, scale)
    refused = caught.value.inner_exception
    assert isinstance(refused, errors.TpuLoweringError) and refused.code == "TL201"
    assert "xla.quantized_matmul_int8.default" in refused.refusal.subject
    assert "@tpu_lowering.register_kernel(torch.ops.xla.quantized_matmul_int8.default)" in refused.refusal.remedy
    torch_xla.sync()
