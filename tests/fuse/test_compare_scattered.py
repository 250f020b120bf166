"""What XLA computes on its way stays XLA's: numbers placed into rows, and rows beside products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from tests.fuse.against_eager import Seen, fused
from tpu_lowering import aot
from tpu_lowering.fuse.compare_scattered import CompareScattered
from tpu_lowering.ir import chips, graphs
from tpu_lowering.runtime.aot.capture import Captured

aten = torch.ops.aten
bf16, f32 = torch.bfloat16, torch.float32
ROWS, ROW = 64, 384


def captured(fn: Callable[..., Any], *args: torch.Tensor) -> Captured:
    return aot.capture(fn, args, {}, chips.find("tpu7x"), {"fuse": "tpu"}, ())


def placing(base: float, index: torch.Tensor, dim: int) -> fx.GraphModule:
    """A graph that places -1 into rows of one number."""
    shape = [ROWS, ROW]

    def fn(index: torch.Tensor) -> torch.Tensor:
        return aten.scatter.value(aten.full.default(shape, base), dim, index, -1.0)

    return make_fx(fn, tracing_mode="fake")(index)


@pytest.mark.parametrize("base", [0.0, 2.5])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_number_in_equal_elements_is_compared(base: float, dim: int) -> None:
    index = torch.randint(ROWS if dim == 0 else ROW, (1, ROW) if dim == 0 else (ROWS, 1))
    module = placing(base, index, dim)
    expected = module(index)
    CompareScattered()(module.graph)
    assert not [node for node in module.graph.nodes if graphs.is_call(node, aten.scatter.value)]
    module.recompile()
    torch.testing.assert_close(module(index), expected, rtol=0, atol=0)
    assert (expected == -1).sum() == (ROW if dim == 0 else ROWS)


def test_an_index_of_several_columns_stays() -> None:
    module = placing(0.0, torch.randint(ROW, (ROWS, 3)), 1)
    CompareScattered()(module.graph)
    assert [node for node in module.graph.nodes if graphs.is_call(node, aten.scatter.value)]


def test_rows_with_other_elements_stay() -> None:
    def fn(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return aten.scatter.value(x, 1, index, -1.0)

    args = (torch.randn(ROWS, ROW), torch.randint(ROW, (ROWS, 1)))
    module = make_fx(fn, tracing_mode="fake")(*args)
    CompareScattered()(module.graph)
    assert [node for node in module.graph.nodes if graphs.is_call(node, aten.scatter.value)]


@pytest.mark.parametrize("dtype", [bf16, f32])
def test_the_gradient_of_a_loss_scatters_nothing(dtype: torch.dtype) -> None:
    """From saved logarithms: one pass over them, by XLA."""

    def gradient(logs: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        placed = aten.scatter.value(torch.zeros_like(logs), 1, labels[:, None], -1.0) * scale
        return aten._log_softmax_backward_data(placed, logs, 1, dtype)

    logs = F.log_softmax(torch.randn(ROWS, ROW), 1).to(dtype)
    labels, scale = torch.randint(ROW, (ROWS,)), torch.tensor(0.25, dtype=dtype)
    torch.testing.assert_close(fused(gradient, Seen())(logs, labels, scale), gradient(logs, labels, scale))
    assert "aten.scatter" not in captured(gradient, logs, labels, scale).source.text


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],))


X, W = torch.empty(4096, 1024, dtype=bf16), torch.empty(1024, 512, dtype=bf16)
INTO_PRODUCTS: dict[str, Callable[..., Any]] = {
    "a product": lambda x, w: rms_norm(x) @ w,
    "a linear layer": lambda x, w: F.linear(rms_norm(x), w.T, w[0]),
    "products of views": lambda x, w: (rms_norm(x) @ w, rms_norm(x).view(4, 1024, 1024).view(4096, 1024) @ w.neg()),
    "a product and float8": lambda x, w: (rms_norm(x) @ w, rms_norm(x).to(torch.float8_e4m3fn)),
    "a sum beside a product": lambda x, w: (2 * x + w[0, 0], rms_norm(2 * x + w[0, 0]) @ w),
}
BESIDE_PRODUCTS: dict[str, Callable[..., Any]] = {
    "rows and a product": lambda x, w: (rms_norm(x), rms_norm(x) @ w),
    "rows alone": lambda x, w: rms_norm(x) + w[0, 0],
}


@pytest.mark.parametrize("name", [*INTO_PRODUCTS, *BESIDE_PRODUCTS])
def test_rows_that_xla_computes_inside_their_users_are_no_kernel(name: str) -> None:
    """XLA normalises what the product multiplies, and never writes it (libtpu 0.0.52)."""
    fn = INTO_PRODUCTS.get(name) or BESIDE_PRODUCTS[name]
    found = [kernel.name for kernel in captured(fn, X, W).source.kernels.values()]
    assert bool(found) == (name in BESIDE_PRODUCTS), found


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("activation", [F.gelu, F.silu, torch.neg])
def test_a_layer_between_two_products_is_no_kernel(rank: int, activation: Callable[..., Any]) -> None:
    """What follows one product and goes into another is computed inside the one, through views too."""

    def layers(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, v: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return F.linear(activation(F.linear(x, w, b)), v, c)

    x, w, v = (torch.empty(*shape, dtype=bf16) for shape in ((8, 512, 768)[3 - rank :], (3072, 768), (768, 3072)))
    assert not captured(layers, x, w, v[0].clone(), v, w[0].clone()).source.kernels


FROM_PRODUCTS: dict[str, Callable[..., Any]] = {
    "a product": lambda x, w: torch.logsumexp(x @ w, -1),
    "products of a batch": lambda x, w: torch.softmax(torch.bmm(x.view(4, 1024, 1024), w.expand(4, 1024, 512)), -1),
    "heads of a product": lambda x, w: F.rms_norm((x @ w).view(-1, 4, 128), (128,)),
    "a product with more added": lambda x, w: F.rms_norm(F.gelu(x @ w) + x[:, :512], (512,)),
}


@pytest.mark.parametrize("name", FROM_PRODUCTS)
def test_rows_of_a_product_that_stays_in_vmem_are_no_kernel(name: str) -> None:
    """4 MiB of the 64 that a core of a tpu7x has; of sixteen times as many rows there is a kernel."""
    assert not captured(FROM_PRODUCTS[name], X, W).source.kernels
    if name != "products of a batch":
        assert captured(FROM_PRODUCTS[name], torch.empty(16 * 4096, 1024, dtype=bf16), W).source.kernels
