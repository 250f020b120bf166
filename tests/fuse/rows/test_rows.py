"""Row kernels against eager: what is found, what it computes, in which blocks."""

from __future__ import annotations

import pathlib
import re
import runpy
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.fuse.against_eager import TOLERANCE, Seen, assert_trains_as_eager, fused, normal
from tpu_lowering import aot
from tpu_lowering.ir import chips

bf16, f32 = torch.bfloat16, torch.float32
ROWS, ROW = 100, 300  # neither is a multiple of a tile
LABELS = torch.arange(ROWS) * 7 % ROW


SOFTMAX = """\
def softmax_rows(arg0_1):
    with jax.named_scope("test_rows.py:N"):
        amax_default = aten.amax(arg0_1, [1], True, out=f32[40, 1])
        sub_tensor = aten.sub(arg0_1, amax_default, alpha=1, out=f32[40, 256])
        exp_default = aten.exp(sub_tensor, out=f32[40, 256])
        sum_dim_int_list = aten.sum(exp_default, [1], True, out=f32[40, 1])
        div_tensor = aten.div(exp_default, sum_dim_int_list, out=f32[40, 256])
    return (div_tensor,)


def softmax_rows_kernel(arg0_1_ref, div_ref):
    (div,) = softmax_rows(arg0_1_ref[...])
    div_ref[...] = div


def softmax_rows_launch(arg0_1, *, interpret):
    return pl.pallas_call(
        softmax_rows_kernel,
        grid=(),
        in_specs=[
            pl.BlockSpec((40, 256), lambda: (0, 0)),  # arg0_1
        ],
        out_specs=[
            pl.BlockSpec((40, 256), lambda: (0, 0)),  # div
        ],
        out_shape=[jax.ShapeDtypeStruct((40, 256), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=(), vmem_limit_bytes=50331648),
        interpret=interpret,
        name="softmax_rows",
    )(arg0_1)"""


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def add_rms_norm(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + y, rms_norm(x + y, weight)


def standardised(x: torch.Tensor, dim: int) -> torch.Tensor:
    return (x - x.mean(dim, keepdim=True)) / x.std(dim, keepdim=True)


def two_losses(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="batchmean")


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def mixed_pieces(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Three pieces of two tensors' rows, of sizes of their own."""
    return torch.cat((y[..., 200:], x[..., 10:60].exp(), x[..., 100:250]), -1) * x.sin()


Case = tuple[Callable[..., Any], tuple[tuple[int, ...], ...], list[str], list[str]]
"""A function, shapes of its arguments, and all row kernels of the forward and of the backward, in order."""
CASES: dict[str, Case] = {
    "softmax": (lambda x: torch.softmax(x, -1), ((ROWS, ROW),), ["softmax_rows"], ["softmax_backward_data_rows"]),
    "softmax of columns": (
        lambda x: torch.softmax(x, 0), ((ROWS, ROW),), ["softmax_rows"], ["softmax_backward_data_rows"],
    ),
    "softmax of the middle": (
        lambda x: torch.softmax(x, 1), ((5, ROWS, 70),), ["softmax_rows"], ["softmax_backward_data_rows"],
    ),
    "log_softmax": (
        lambda x: torch.log_softmax(x, -1), ((ROWS, ROW),), ["log_softmax_rows"], ["log_softmax_backward_data_rows"],
    ),
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, (ROW,), w, b),
        ((3, 50, ROW), (ROW,), (ROW,)),
        ["native_layer_norm_rows"],
        ["native_layer_norm_backward_rows"],
    ),
    "layer_norm without a bias": (
        lambda x, w: F.layer_norm(x, (ROW,), w),
        ((3, 50, ROW), (ROW,)),
        ["native_layer_norm_rows"],
        ["native_layer_norm_backward_rows"],
    ),
    "rms_norm": (rms_norm, ((4, 33, ROW), (ROW,)), ["mean_rows"], ["sum_rows"]),
    "add and rms_norm": (
        add_rms_norm, ((4, 33, ROW), (4, 33, ROW), (ROW,)), ["mean_rows"], ["sum_rows"],
    ),
    "cross entropy": (
        lambda x: F.cross_entropy(x, LABELS, ignore_index=7),
        ((ROWS, ROW),),
        ["amax_sum_gather_rows"],
        ["log_softmax_backward_data_rows"],
    ),
    "label smoothing": (
        lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1),
        ((ROWS, ROW),),
        ["amax_sum_gather_rows"],
        ["log_softmax_backward_data_rows"],
    ),
    "rotary embedding": (rotary, ((2, 3, 40, 64), (2, 1, 40, 64), (1, 1, 40, 64)), ["pieces_rows"], ["pieces_rows"]),
    "mixed pieces": (mixed_pieces, ((40, ROW), (40, ROW)), ["pieces_rows"], ["pieces_rows"]),
    "running sum": (lambda x: (2 * x).cumsum(-1) / ROW, ((ROWS, ROW),), ["cumsum_rows"], ["cumsum_rows"]),
    "running sum of columns": (
        lambda x: (2 * x).cumsum(-2) / ROWS, ((2, ROWS, ROW),), ["cumsum_rows"], ["cumsum_rows"],
    ),
    "running sum, spread": (
        lambda x, y: x.cumsum(-1)[..., None] * y, ((ROWS, 40), (ROWS, 40, 5)), ["cumsum_rows"], ["cumsum_rows"],
    ),
    "running sum, far from the last dimension": (
        lambda x, y: x.cumsum(-1)[..., None, None] * y, ((4, 40), (4, 40, 8, 128)), [], ["cumsum_rows"],
    ),
    "two losses": (
        two_losses,
        ((ROWS, ROW), (ROWS, ROW)),
        ["softmax_rows"],
        ["softmax_backward_data_log_softmax_backward_data_rows"],
    ),
    "scaled and masked": (
        lambda x, m: torch.softmax(x * 0.125 + m, -1),
        ((2, 4, 60, 60), (2, 1, 60, 60)),
        ["softmax_rows"],
        ["softmax_backward_data_rows"],
    ),
    "a vector along rows and columns": (
        lambda x, b: torch.softmax(x + b + b[:, None], -1),
        ((64, 64), (64,)),
        ["softmax_rows"],
        ["softmax_backward_data_rows"],
    ),
    "cosine": (
        lambda x, y: F.cosine_similarity(x, y),
        ((ROWS, ROW), (ROWS, ROW)),
        ["linalg_vector_norm_sum_rows"],
        ["sum_rows"],
    ),
    "standardised": (lambda x: standardised(x, -1), ((ROWS, ROW),), ["mean_var_rows"], ["sum_rows"]),
    "instance norm": (
        lambda x: F.instance_norm(x),
        ((2, 8, 10, 10),),
        ["native_batch_norm_legit_rows"],
        ["native_batch_norm_backward_rows"],
    ),
    "product and softmax": (
        lambda x, w: torch.softmax(x @ w / 8, -1),
        ((ROWS, 70), (70, ROW)),
        ["mm_softmax_rows"],
        ["softmax_backward_data_rows"],
    ),
    "product and softmax of columns": (
        lambda x, w: torch.softmax(x @ w / 8, 0),
        ((ROWS, 70), (70, ROW)),
        ["mm_softmax_rows"],
        ["softmax_backward_data_rows"],
    ),
    "linear, residual and layer_norm": (
        lambda x, w, b, r, g, c: F.layer_norm(F.linear(x, w, b) / 8 + r, (ROW,), g, c),
        ((3, 32, 70), (ROW, 70), (ROW,), (3, 32, ROW), (ROW,), (ROW,)),
        ["addmm_native_layer_norm_rows"],
        ["native_layer_norm_backward_rows"],
    ),
    "after a product": (
        lambda x, w: F.layer_norm(x + F.gelu(x @ w), (ROW,)),
        ((64, ROW), (ROW, ROW)),
        ["native_layer_norm_rows"],
        ["native_layer_norm_backward_rows"],
    ),
}  # fmt: skip


def assert_equals_eager(name: str, dtype: torch.dtype, **options: Any) -> None:
    """Results and gradients, and the kernels that computed them."""
    fn, shapes, forward, backward = CASES[name]
    seen = assert_trains_as_eager(fn, normal(shapes, dtype), **options)
    assert seen.kernels("forward") == forward
    assert seen.kernels("backward") == backward


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_eager(name: str, dtype: torch.dtype) -> None:
    assert_equals_eager(name, dtype)


@pytest.mark.sweep
@pytest.mark.filterwarnings(r"error:\[TL507\]")
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_has_no_race_and_reads_nothing_uninitialised(name: str) -> None:
    """JAX's interpreter of TPUs finds none: it would raise TL212, or warn with TL507."""
    assert_equals_eager(name, f32, cpu_kernels="tpu_interpret")


def test_a_kernel_in_the_plain_interpreter() -> None:
    assert_equals_eager("layer_norm", f32, cpu_kernels="interpret")


def test_what_is_not_fused() -> None:
    """Pointwise chains, plain reductions and products are XLA's; so are types that a TPU kernel does not hold."""

    def fn(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.relu(x * 2 + 1), x.sum(-1), x @ x.t(), torch.softmax(y, -1)

    seen = Seen()
    x, y = torch.randn(64, 256), torch.randn(64, 256, dtype=torch.float64)
    torch.testing.assert_close(fused(fn, seen)(x, y), fn(x, y), rtol=1e-5, atol=1e-4)
    assert seen.actions == []


def test_a_value_needed_outside_that_waits_for_outside_work() -> None:
    """The maximum goes out through a product and comes back: one kernel for both ends would wait for itself."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        p = torch.softmax(x, -1)
        return torch.softmax(p + p @ w, -1)

    seen = Seen()
    x, w = torch.randn(64, 256), torch.randn(256, 256)
    torch.testing.assert_close(fused(fn, seen)(x, w), fn(x, w))
    assert seen.kernels("inference") == ["softmax_rows", "mm_softmax_rows"]


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: torch.triu(x, 1),
        lambda x: torch.tril(x),
        lambda x: x + torch.eye(64),
        lambda x: x + torch.arange(64.0),
        lambda x: torch.where(torch.arange(64)[:, None] >= torch.arange(64), x, -1e9),
        lambda x: x.flip(0),
        lambda x: x.roll(1, 1),
    ],
)
def test_what_depends_on_the_place_is_not_pointwise(mask: Callable[[torch.Tensor], torch.Tensor]) -> None:
    seen, x = Seen(), torch.randn(64, 64)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(mask(x * 2) + 1, -1)

    torch.testing.assert_close(fused(fn, seen)(x), fn(x))
    assert seen.kernels("inference") == ["softmax_rows"]


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("rows", [(ROWS,), (3, 33), (2, 4, 24)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_that_are_multiplied_are_one_kernel(
    transposed: bool, rows: tuple[int, ...], dtype: torch.dtype
) -> None:
    def gated(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        gate, up = (F.linear(x, y) if transposed else x @ y for y in (w, v))
        return F.silu(gate) * up

    torch.manual_seed(0)
    shape = (200, ROW) if transposed else (ROW, 200)
    args = [torch.randn(s, dtype=dtype) for s in ((*rows, ROW), shape, shape)]
    seen = Seen()
    got, wanted = fused(gated, seen, verify=True, poison=True)(*args), gated(*args)
    torch.testing.assert_close(got / ROW, wanted / ROW, **TOLERANCE[dtype])
    assert seen.kernels("inference") == ["mm_silu_mul_blocks"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, y: (x @ y) * torch.relu(x),  # the only product: XLA fuses what follows it
        lambda x, y: (lambda p: (p, torch.softmax(p, -1)))(x @ y),  # needed itself
        lambda x, y: (torch.tanh(x) @ y) * (x @ torch.tanh(y)),  # XLA computes such factors in the product
        lambda x, y: (x.t() @ y) * (y.t() @ x),  # rows of the left factors lie across
        lambda x, y: torch.addmm(y, x, y, beta=2) * (x @ y + 1) * torch.addmm(y, x, y, alpha=3),
    ],
)
def test_products_that_stay_xla_s(fn: Callable[..., Any]) -> None:
    seen, x, y = Seen(), torch.randn(64, 64), torch.randn(64, 64)
    torch.testing.assert_close(fused(fn, seen)(x, y), fn(x, y), rtol=1e-4, atol=1e-3)
    assert not any("mm" in name for name in seen.kernels("inference"))


def test_verify_and_poison_hold() -> None:
    seen = Seen()
    x = torch.randn(33, 70)
    run = fused(lambda x: torch.softmax(x.masked_fill(x > 1, -1e9), -1), seen, verify=True, poison=True)
    torch.testing.assert_close(run(x), torch.softmax(x.masked_fill(x > 1, -1e9), -1))
    assert seen.kernels("inference") == ["softmax_rows"]


def test_not_a_number_and_infinity_come_out_as_eager_has_them() -> None:
    x = torch.randn(40, 130)
    x[3, 5], x[7, :], x[9, 2] = float("nan"), float("-inf"), float("inf")
    seen = Seen()
    torch.testing.assert_close(fused(lambda x: torch.softmax(x, -1), seen)(x), torch.softmax(x, -1), equal_nan=True)
    assert seen.kernels("inference") == ["softmax_rows"]


def test_an_element_of_a_row_is_taken_before_anything_is_computed_of_it() -> None:
    seen, x = Seen(), torch.randn(ROWS, ROW).bfloat16()
    fused(lambda x: F.cross_entropy(x.float(), LABELS, reduction="none").bfloat16(), seen)(x)
    taken = re.findall(r"aten.where\(eq_\w+, (\w+), ", seen.texts[0])
    assert taken and set(taken) == set(re.findall(r"(\w+) = aten.to\(arg0_1, dtype=torch.float32", seen.texts[0]))


def test_a_kernel_as_it_is_written(tmp_path: pathlib.Path) -> None:
    """The dump folder has its source, which runs on its own."""
    x = torch.randn(40, 256)
    fused(lambda x: torch.softmax(x, -1), Seen(), dump=str(tmp_path))(x)
    (path,) = tmp_path.rglob("softmax_rows.py")
    namespace = runpy.run_path(str(path))
    (result,) = namespace["softmax_rows_launch"](jnp.asarray(x.numpy()), interpret=True)
    torch.testing.assert_close(torch.from_numpy(np.array(result)), torch.softmax(x, -1))
    lines = re.sub(r"test_rows.py:\d+", "test_rows.py:N", path.read_text()).splitlines()
    body = "\n".join(lines[lines.index("def softmax_rows(arg0_1):") :])
    assert body == SOFTMAX


@pytest.mark.parametrize(("length", "kernels"), [(1024, 0), (4096, 1)], ids=["held in VMEM", "too large"])
def test_rows_between_products_are_left_to_a_compiler_that_keeps_them_in_vmem(length: int, kernels: int) -> None:
    def scores(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax((x @ y).exp(), 0)  # by column: no attention
        return weights @ y.mT

    x, y = torch.zeros(length, 256), torch.zeros(256, 4 * length)
    captured = aot.capture(scores, (x, y), {}, chips.find("v5e"), {"fuse": "tpu"}, ())
    assert len(captured.source.kernels) == kernels


@pytest.mark.parametrize(("length", "kernels"), [(4096, []), (16384, ["mm_softmax_rows"])])
def test_a_small_product_is_left_to_a_compiler_that_keeps_it_in_vmem(length: int, kernels: list[str]) -> None:
    x, y = torch.zeros(length, 256, dtype=bf16), torch.zeros(256, 1024, dtype=bf16)
    captured = aot.capture(lambda x, y: torch.softmax(x @ y, -1), (x, y), {}, chips.find("tpu7x"), {"fuse": "tpu"}, ())
    assert list(captured.source.kernels) == kernels


def test_rows_that_leave_the_program_are_no_rows_between_products() -> None:
    x, y = torch.zeros(2048, 256), torch.zeros(256, 4096)
    captured = aot.capture(lambda x, y: torch.softmax(x @ y, -1), (x, y), {}, chips.find("v5e"), {"fuse": "tpu"}, ())
    assert len(captured.source.kernels) == 1
