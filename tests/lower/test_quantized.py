"""Products of 8-bit and 4-bit operands against eager, what is refused, and bytes of the weights on a chip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import tpu_lowering
from tests.lower.evaluate import capture, evaluate
from tpu_lowering import compat, errors

aten = torch.ops.aten
bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
TOLERANCE = {f32: (1e-5, 1e-4), bf16: (2**-7, 1e-2), f16: (2**-9, 1e-2), e4m3: (2**-3, 2e-2), e5m2: (2**-2, 2e-2)}

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def check(cases: Sequence[Case]) -> None:
    """All in one program."""
    found = evaluate([capture(fn, *args) for fn, args in cases], [args for _, args in cases])
    for values, (fn, args) in zip(found, cases, strict=True):
        expected = fn(*args)
        (value,) = values if isinstance(values, (list, tuple)) else (values,)
        assert value.dtype == expected.dtype
        rtol, atol = TOLERANCE.get(expected.dtype, (0, 0))
        torch.testing.assert_close(value.float(), expected.float(), rtol=rtol, atol=atol, equal_nan=True)


def float8(*shape: int, dtype: torch.dtype = e4m3) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def scaled(further: str = "", **given: Any) -> Callable[..., torch.Tensor]:
    return lambda x, y, a, b, *one: torch._scaled_mm(x, y, a, b, **dict(zip([further], one, strict=False)), **given)


ONE, TWO = torch.tensor(0.5), torch.tensor([2.0])


def test_scaled_mm() -> None:
    """Both types of float8, scales of all or by rows and columns, columns in memory, a bias, each type of result."""
    torch.manual_seed(0)
    x, y = float8(5, 16), float8(32, 16).t()
    rows, columns = torch.rand(5, 1), torch.rand(1, 32)
    cases: list[Case] = [(scaled(out_dtype=dtype), (x, y, ONE, TWO)) for dtype in (f32, bf16, f16, e4m3, e5m2, None)]
    for types in ((e4m3, e5m2), (e5m2, e4m3), (e5m2, e5m2)):
        mixed = (float8(5, 16, dtype=types[0]), float8(16, 32, dtype=types[1]))
        cases.append((scaled(out_dtype=f32, use_fast_accum=True), (*mixed, rows, columns)))
    cases.append((scaled("bias", out_dtype=bf16), (x, y, rows, columns, torch.randn(32).to(bf16))))
    cases.append((scaled("bias", out_dtype=f32), (x[:, ::2], y[::2], ONE, TWO, torch.randn(32))))
    cases.append((scaled("scale_result", out_dtype=e4m3), (x, y, ONE, TWO, torch.tensor(3.0))))
    cases.append((scaled("scale_result", out_dtype=f32), (x, y, ONE, TWO, torch.tensor(3.0))))
    cases.append((scaled(out_dtype=e4m3), ((x.float() * 99).to(e4m3), (y.float() * 99).to(e4m3), ONE, TWO)))  # overflow
    check(cases)


def test_scaled_mm_with_lists_of_scales() -> None:
    def by(recipe: int) -> Callable[..., torch.Tensor]:
        return lambda x, y, a, b: torch._scaled_mm_v2(x, y, [a], [recipe], [0], [b], [recipe], [0], None, bf16)

    x, y = float8(5, 16), float8(32, 16).t()
    check([(by(0), (x, y, ONE, TWO)), (by(1), (x, y, torch.rand(5, 1), torch.rand(1, 32)))])


def test_weight_int8pack_mm() -> None:
    torch.manual_seed(0)
    cases: list[Case] = []
    for dtype in (f32, bf16, f16):
        for m, n, k in ((5, 32, 64), (1, 16, 32), (3, 48, 96)):
            weights = torch.randint(-128, 128, (n, k), dtype=torch.int8)
            scales = torch.rand(n).to(dtype) / 128
            cases.append((torch._weight_int8pack_mm, (torch.randn(m, k).to(dtype), weights, scales)))
    check(cases)


def test_int_mm() -> None:
    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, dtype=torch.int8)

    check([(torch._int_mm, (whole(17, 8), whole(8, 16))), (torch._int_mm, (whole(8, 17).t(), whole(16, 8).t()))])


def int4_product(group: int) -> Callable[..., torch.Tensor]:
    return lambda x, weights, numbers: aten._weight_int4pack_mm_for_cpu(x, weights, group, numbers)


@pytest.mark.parametrize("n", [16, 48, 64, 208])
def test_int4_weights_are_packed_as_eager_packs_them(n: int) -> None:
    """Whole blocks and what is left beyond them; numbers of more than four bits."""
    torch.manual_seed(n)
    weights = torch.randint(0, 16, (n, 64), dtype=torch.int32)
    weights[0, 0] = 17
    pack = aten._convert_weight_to_int4pack_for_cpu
    cases: list[Case] = [(lambda w: pack(w, 1), (weights,)), (lambda w: pack(w, 8), (weights[:, :32].contiguous(),))]
    packed = pack(weights & 15, 1)
    for dtype in (f32, bf16):
        for group in (32, 64):
            numbers = torch.rand(64 // group, n, 2).to(dtype)
            cases.append((int4_product(group), (torch.randn(3, 64).to(dtype) / 8, packed, numbers)))
    check(cases)


def test_sizes_that_end_eager_s_process_are_no_question() -> None:
    """Eager reads beyond bfloat16 weights whose sizes are no multiples of its blocks."""
    x, weights, scales = torch.randn(3, 13, dtype=bf16), torch.ones(7, 13, dtype=torch.int8), torch.rand(7).to(bf16)
    found = torch.compile(torch._weight_int8pack_mm, backend="helion_tpu")(x, weights, scales)
    expected = (x.double().sum(1, keepdim=True) * scales.double()).to(bf16)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("scales", [((256, 2), (2, 2)), ((256, 2), (2, 256))], ids=str)
def test_scales_of_blocks_are_refused(scales: tuple[tuple[int, ...], ...]) -> None:
    torch._dynamo.reset()
    args = (float8(256, 256), float8(256, 256), *map(torch.rand, scales))
    shown = ", ".join(str(list(shape)) for shape in scales)
    with pytest.raises(compat.BackendCompilerFailed) as caught:
        torch.compile(scaled(out_dtype=f32), backend="helion_tpu")(*args)
    raised: Any = caught.value
    error = raised.inner_exception
    assert isinstance(error, errors.TpuLoweringError) and error.code == "TL301"
    assert error.refusal.reason == (
        f"expected one scale for all of each matrix, or one for each row and each column, got scales {shown}"
    )


WEIGHTS = torch.zeros(2048, 4096, dtype=torch.int8)  # 8 MiB
X, SCALES = torch.empty(256, 4096, dtype=bf16), torch.empty(2048, dtype=bf16)
EIGHT_BITS: dict[str, Case] = {
    "_weight_int8pack_mm": (torch._weight_int8pack_mm, (X, WEIGHTS, SCALES)),
    "scaled before": (lambda x, w, s: x @ (w.to(bf16) * s[:, None]).t(), (X, WEIGHTS, SCALES)),
    "scaled after": (lambda x, w, s: torch.mm(x, w.t().to(bf16)) * s, (X, WEIGHTS, SCALES)),
    "_int_mm": (torch._int_mm, (WEIGHTS[:256], WEIGHTS.t())),
    "_scaled_mm": (
        lambda x, w, s: torch._scaled_mm(
            x.to(e4m3), w.t(), s.new_ones(1).float(), s.new_ones(1).float(), out_dtype=bf16
        ),
        (X, torch.empty(2048, 4096).to(e4m3), SCALES),
    ),
}


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_weights_are_read_once_in_eight_bits(name: str) -> None:
    fn, args = EIGHT_BITS[name]
    program = tpu_lowering.aot_compile(fn, args)
    rows = sum(value.nbytes for value in args if value.dtype != WEIGHTS.dtype or len(value) < len(WEIGHTS))
    result = 256 * 2048 * 4
    assert program.hbm_bytes < WEIGHTS.nbytes * 1.02 + 2 * rows + result
