"""Rows that fit VMEM in no block, against eager: which reductions share a pass, and what the kernels compute.

VMEM is made small, so that rows of a few thousand elements are long.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.fuse.against_eager import TOLERANCE, Seen, assert_trains_as_eager, fused
from tpu_lowering import aot
from tpu_lowering.fuse.xla.layouts import order_in_memory
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import CPU
from tpu_lowering.runtime.cpu import CpuRuntime

bf16, f32 = torch.bfloat16, torch.float32
ROWS, ROW = 20, 3000  # neither is a multiple of a block
VMEM = 400_000  # bytes: some 20 elements of 16 rows for each of a row here
LABELS = torch.arange(ROWS) * 7 % ROW


@pytest.fixture(autouse=True)
def small_vmem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuRuntime, "chip", dataclasses.replace(CPU, vmem_bytes=VMEM))


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def weighted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """An average of y by weights of x, as attention has it."""
    return (torch.softmax(x, -1) * y).sum(-1)


def written_out_average(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    exp = torch.exp(x - x.amax(-1, keepdim=True).detach())
    return (exp * torch.sigmoid(y)).sum(-1) / exp.sum(-1)


def kl_divergence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.kl_div(F.log_softmax(x, -1), F.log_softmax(y, -1), log_target=True, reduction="batchmean")


def loss(x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, LABELS, ignore_index=7, reduction="none")


Case = tuple[Callable[..., Any], tuple[tuple[int, ...], ...], list[str]]
CASES: dict[str, Case] = {
    "softmax": (lambda x: torch.softmax(x, -1), ((ROWS, ROW),), ["softmax_long_rows"]),
    "softmax of columns": (lambda x: torch.softmax(x, 0), ((ROW, ROWS),), ["softmax_long_rows"]),
    "softmax of the middle": (lambda x: torch.softmax(x, 1), ((3, ROW, 5),), ["softmax_long_rows"]),
    "log_softmax": (lambda x: torch.log_softmax(x, -1), ((2, 10, ROW),), ["log_softmax_long_rows"]),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), ((ROWS, ROW),), ["logsumexp_long_rows"]),
    "cross entropy": (loss, ((ROWS, ROW),), ["amax_sum_gather_long_rows"]),
    "label smoothing": (
        lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1), ((ROWS, ROW),), ["amax_sum_gather_long_rows"],
    ),
    "layer_norm": (layer_norm, ((ROWS, ROW), (ROW,), (ROW,)), ["native_layer_norm_long_rows"]),
    "instance norm": (lambda x: F.instance_norm(x), ((2, 8, 300, 70),), ["native_batch_norm_legit_long_rows"]),
    "variance": (lambda x: x.var(-1), ((ROWS, ROW),), ["var_long_rows"]),
    "standardised": (lambda x: centred(x) / x.std(-1, keepdim=True), ((ROWS, ROW),), ["var_long_rows"]),
    "mean of squares": (
        lambda x: centred(x.float()).pow(2).mean(-1).to(x.dtype), ((ROWS, ROW),), ["mean_long_rows"],
    ),
    "average": (written_out_average, ((ROWS, ROW), (ROWS, ROW)), ["amax_sum_long_rows"]),
    "softmax and its average": (weighted, ((ROWS, ROW), (ROWS, ROW)), ["softmax_long_rows"]),
    "layer_norm and softmax": (
        lambda x: torch.softmax(3 * F.layer_norm(x, (ROW,)), -1),
        ((ROWS, ROW),),
        ["native_layer_norm_long_rows", "native_layer_norm_softmax_long_rows"],
    ),
    "KL divergence": (kl_divergence, ((ROWS, ROW), (ROWS, ROW)), ["amax_sum_long_rows"]),
    "a vector along rows": (
        lambda x, b: torch.softmax(x * 0.5 + b, -1), ((ROWS, ROW), (ROW,)), ["softmax_long_rows"],
    ),
}  # fmt: skip


def assert_equals_eager(name: str, dtype: torch.dtype, **options: Any) -> None:
    """Results and gradients, and the kernels of the results."""
    fn, shapes, kernels = CASES[name]
    torch.manual_seed(0)
    args = [(2 * torch.randn(shape) + 1).to(dtype).requires_grad_() for shape in shapes]
    found = set(assert_trains_as_eager(fn, args, **options).kernels("forward"))
    assert set(kernels) <= found, found


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_pass_equals_eager(name: str, dtype: torch.dtype) -> None:
    assert_equals_eager(name, dtype)


@pytest.mark.parametrize("name", ["cross entropy", "layer_norm and softmax"])
def test_verify_and_poison_hold(name: str) -> None:
    assert_equals_eager(name, f32, verify=True, poison=True)


@pytest.mark.sweep
@pytest.mark.filterwarnings(r"error:\[TL507\]")
@pytest.mark.parametrize("name", ["softmax", "softmax of the middle", "cross entropy", "layer_norm", "instance norm"])
def test_a_pass_has_no_race_and_reads_nothing_uninitialised(name: str) -> None:
    assert_equals_eager(name, f32, cpu_kernels="tpu_interpret")


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.softmax(x, -1),
        lambda x: torch.logsumexp(x, -1),
        loss,
        lambda x: F.layer_norm(x, (ROW,)),
        lambda x: torch.stack([x.mean(-1), x.var(-1)]),
    ],
    ids=["softmax", "logsumexp", "cross entropy", "layer_norm", "mean and variance"],
)
def test_not_a_number_and_infinity_come_out_as_eager_has_them(fn: Callable[..., Any], dtype: torch.dtype) -> None:
    """Whole rows of -inf too, rows that begin or end with blocks of it, and rows that are infinite at the end."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, ROW).to(dtype)
    x[3, 5], x[4, 2900], x[7, :], x[9, 2] = float("nan"), float("nan"), float("-inf"), float("inf")
    x[10, :2500], x[11, 500:], x[12, 100], x[13, 2999] = (float("-inf"),) * 3 + (float("inf"),)
    seen = Seen()
    torch.testing.assert_close(fused(fn, seen)(x), fn(x), equal_nan=True, **TOLERANCE[dtype])
    assert len(seen.kernels("inference")) == 1


def test_a_mean_far_from_zero_takes_no_digits_from_the_variance() -> None:
    """Squares of 1000 have no digits left for a variance of 1."""
    x = torch.randn(ROWS, ROW, generator=torch.Generator().manual_seed(0)) + 1000
    got = fused(lambda x: x.var(-1), Seen())(x)
    torch.testing.assert_close(got.double(), x.double().var(-1), rtol=1e-5, atol=0)


def test_the_greatest_element_may_grow_from_block_to_block() -> None:
    """By so much that what earlier blocks add up to vanishes."""
    x = torch.arange(ROW).expand(ROWS, ROW).float() * torch.linspace(-0.1, 0.1, ROWS)[:, None]
    torch.testing.assert_close(fused(lambda x: torch.softmax(x, -1), Seen())(x), torch.softmax(x, -1))


def test_labels_are_found_in_every_block() -> None:
    x, labels = torch.randn(ROW // 100, ROW), torch.arange(0, ROW, 100) + 99

    def fn(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x.exp(), labels, reduction="none")

    seen = Seen()
    torch.testing.assert_close(fused(fn, seen)(x, labels), fn(x, labels))
    (text,) = seen.texts
    assert len(re.findall("places_1", text)) >= 3


def test_the_gradient_of_a_loss_writes_no_row_but_itself() -> None:
    """What a label's place has in it is compared with the label, not written."""
    gradient = torch.func.grad(lambda x: F.cross_entropy(x, LABELS))
    seen, x = Seen(), torch.randn(ROWS, ROW)
    torch.testing.assert_close(fused(gradient, seen)(x), gradient(x))
    (kernel,) = seen.kernels("inference")
    assert kernel.startswith("log_softmax")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),  # one pass by XLA too
        lambda x: x / x.abs().amax(-1, keepdim=True),
        lambda x: torch.exp(x - x.mean(-1, keepdim=True)).sum(-1),  # could overflow on the way
        lambda x: (x - x.amax(-1, keepdim=True)).square().sum(-1),
    ],
)
def test_rows_that_stay_xla_s(fn: Callable[..., Any]) -> None:
    seen, x = Seen(), torch.randn(ROWS, ROW)
    torch.testing.assert_close(fused(fn, seen)(x), fn(x), rtol=1e-5, atol=1e-4)
    ((_, action),) = seen.actions
    assert (action.kind, action.code) == ("unfused", "TL607")
    assert action.reason == (
        "no block of its rows fits the chip's memory, or its sums need the grid in two orders, and one pass over blocks "
        "of rows would move no fewer bytes"
    )


def test_squares_around_a_rounded_mean_wait_for_it() -> None:
    """In bfloat16 what a mean has so far is not exact enough."""
    seen, x = Seen(), torch.randn(ROWS, ROW, dtype=bf16)
    fused(lambda x: centred(x).pow(2).mean(-1), seen)(x)
    assert not seen.texts


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((64, 1000000), (0, 1)),
        ((256, 1000000), (1, 0)),
        ((1000000, 64), (1, 0)),
        ((512, 50304), (0, 1)),
        ((8192, 50257), (1, 0)),
        ((1000, 1000), (0, 1)),
        ((4, 256, 50257), (2, 0, 1)),
        ((2, 1000003, 128), (1, 0, 2)),
        ((7,), (0,)),
    ],
)
def test_inputs_lie_as_padding_is_least(shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    """As libtpu 0.0.52 lays them out."""
    assert order_in_memory(shape) == order


def test_a_kernel_takes_an_input_as_it_lies() -> None:
    """The rows of [256, 3001] lie along the first dimension: no lanes are wasted so."""
    seen, x = Seen(), torch.randn(256, 3001)
    torch.testing.assert_close(fused(lambda x: torch.softmax(x, -1), seen)(x), torch.softmax(x, -1))
    (text,) = seen.texts
    assert re.search(r"BlockSpec\(\(\d+, 256\), lambda i: \(i, 0\)\),  # arg0_1", text)


def test_a_pass_as_it_is_written(tmp_path: pathlib.Path) -> None:
    x = torch.randn(ROWS, ROW)
    fused(lambda x: torch.softmax(x, -1), Seen(), dump=str(tmp_path))(x)
    (path,) = tmp_path.rglob("softmax_long_rows.py")
    lines = path.read_text().splitlines()
    start = lines.index("def softmax_long_rows_kernel(arg0_1_ref, amax_ref, sum_1_ref):")
    assert lines[start : start + 14] == [
        "def softmax_long_rows_kernel(arg0_1_ref, amax_ref, sum_1_ref):",
        "    j = pl.program_id(1)",
        "    places_1 = j * 1024 + jax.lax.broadcasted_iota(jnp.int32, (1, 1024), 1)",
        "    inside_1 = places_1 < 3000",
        "",
        "    @pl.when(j == 0)",
        "    def start():",
        '        amax_ref[...] = jnp.full_like(amax_ref, float("-inf"))',
        "        sum_1_ref[...] = jnp.full_like(sum_1_ref, 0)",
        "",
        "    (amax, sum_1,) = softmax_long_rows(arg0_1_ref[...], inside_1, amax_ref[...], sum_1_ref[...])",
        "    amax_ref[...] = amax",
        "    sum_1_ref[...] = sum_1",
        "",
    ]


@pytest.mark.parametrize("target", ["tpu7x", "v6e", "v5e"])
def test_a_row_that_no_block_of_a_real_chip_holds(target: str) -> None:
    """8 rows of 16 million float32 are 512 MiB."""
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(8, 1 << 24)
    captured = aot.capture(lambda x: torch.softmax(x, -1), (x,), {}, chips.find(target), {"fuse": "tpu"}, ())
    assert list(captured.source.kernels) == ["softmax_long_rows"]
