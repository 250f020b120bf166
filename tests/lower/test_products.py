"""Products of float32 on a TPU: exact, unless they are the user's, and the user told torch otherwise.

Programs are lowered for a TPU by JAX alone; what it says of a product's precision is in its text.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_methods_invocations import op_db

from tests.lower.evaluate import NoRow, capture, evaluator_of, to_jax
from tpu_lowering import compat
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen import load
from tpu_lowering.lower.precision import Precision
from tpu_lowering.runtime.cpu import CpuRuntime

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution|dot)\b.*")
EVERYTHING = os.environ.get("TPU_LOWERING_OPINFO") == "all"
SOME = ["addmm", "baddbmm", "cholesky_solve", "linalg.solve", "linalg.pinv", "linalg.pinv.hermitian", "linalg.ldl_solve", "linalg.ldl_factor_ex", "linalg.inv", "linalg.lu_solve", "linalg.householder_product", "linalg.matrix_power", "linalg.matrix_exp", "linalg.det", "ormqr", "lu_solve", "nn.functional.adaptive_avg_pool2d", "nn.functional.avg_pool2d", "nn.functional.interpolate.bicubic", "nn.functional.conv2d", "nn.functional.conv_transpose2d", "nn.functional.interpolate.area", "nn.functional.scaled_dot_product_attention", "cdist", "nn.functional.bilinear", "einsum", "fft.fft", "cumsum", "nn.functional.grid_sample", "matrix_exp", "svd", "linalg.eigh", "_upsample_bilinear2d_aa"]  # fmt: skip
NOT_ON_A_TPU = "only implemented on CPU|not found for platform|not implemented for platform|unsupported on platform tpu"


def name_of(op: Any) -> str:
    return op.formatted_name if EVERYTHING else op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


CHOSEN = [op for op in op_db if op.supports_dtype(torch.float32, "cpu") and (EVERYTHING or name_of(op) in SOME)]


def products_of(op: Any) -> tuple[str, ...]:
    """The products in an operator's programs for a TPU, for one of its samples."""
    torch.manual_seed(0)
    sample = max(op.sample_inputs("cpu", torch.float32), key=lambda one: getattr(one.input, "ndim", 0))
    leaves, tree = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        given = list(leaves)
        for at, tensor in zip(places, tensors, strict=True):
            given[at] = tensor
        first, args, kwargs = pytree.tree_unflatten(given, tree)
        return op.op(first, *args, **kwargs)

    graph = capture(function, *(leaves[at] for at in places))
    with compat.enable_x64(True):
        arrays = [to_jax(leaves[at]) for at in places]
        traced = jax.jit(evaluator_of(graph)).trace(*arrays)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    return tuple(PRODUCT.findall(text))


@pytest.mark.parametrize("op", CHOSEN, ids=name_of)
def test_products_of_rows_are_exact(op: Any) -> None:
    try:
        products = products_of(op)
    except NoRow as error:
        pytest.skip(f"TL301: {error}")
    except (NotImplementedError, ValueError, RuntimeError) as error:
        if EVERYTHING or re.search(NOT_ON_A_TPU, str(error)):
            pytest.skip(f"has no program for a TPU: {str(error)[:100]}")
        raise
    rounded = [text for text in products if "HIGHEST" not in text and re.search(r"x(f32|complex<f32>)>", text)]
    assert rounded == []


class Lowering(CpuRuntime):
    """Keeps what programs and their sources look like for a TPU."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.products: list[str] = []

    def compile(self, program: Any, source: Any) -> Any:
        self.sources.append(source.text)
        with compat.enable_x64(True):
            traced = jax.jit(load.load(program, source, "vectorized")).trace(*load.input_specs(program))
            self.products += PRODUCT.findall(traced.lower(lowering_platforms=("tpu",)).as_text())
        return super().compile(program, source)


@pytest.fixture
def told() -> Iterator[Callable[[str, str], None]]:
    """Tells torch how exact products and convolutions are to be; as before afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.conv.fp32_precision

    def tell(matrices: str, convolution: str) -> None:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.mkldnn.conv.fp32_precision = convolution

    yield tell
    tell(*before)


def lowered(function: Callable[..., Any], *arguments: torch.Tensor) -> Lowering:
    torch._dynamo.reset()
    runtime = Lowering()
    results = torch.compile(function, backend=functools.partial(helion_tpu, runtime=runtime), fullgraph=True)(
        *arguments
    )
    if results.requires_grad:
        results.sum().backward()
    return runtime


def levels(products: list[str]) -> set[str]:
    return {found.group(1) if (found := re.search(r"\b(HIGHEST|HIGH|DEFAULT)\b", text)) else "" for text in products}


MATRICES = {"highest": "HIGHEST", "high": "HIGH", "medium": "DEFAULT"}
CONVOLUTIONS = {"none": "HIGHEST", "ieee": "HIGHEST", "tf32": "HIGH", "bf16": "DEFAULT"}


@pytest.mark.parametrize("precision", MATRICES)
def test_a_users_product_and_its_gradients_follow_torch(told: Any, precision: str) -> None:
    told(precision, "none")
    weight = torch.randn(4, 4, requires_grad=True)
    found = lowered(lambda x, w: x @ w, torch.randn(3, 4, requires_grad=True), weight)
    assert len(found.products) == 3
    assert levels(found.products) == {MATRICES[precision]}
    assert all((f'precision="{precision}"' in text) == (precision != "highest") for text in found.sources)


@pytest.mark.parametrize("precision", CONVOLUTIONS)
def test_a_users_convolution_and_its_gradients_follow_torch(told: Any, precision: str) -> None:
    told("highest", precision)
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    found = lowered(lambda x, w: torch.conv2d(x, w), torch.randn(1, 2, 5, 5, requires_grad=True), weight)
    assert len(found.products) == 3
    assert levels(found.products) == {CONVOLUTIONS[precision]}


def test_what_is_no_users_product_stays_exact(told: Any) -> None:
    told("medium", "bf16")
    found = lowered(lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 3), torch.randn(1, 2, 5, 5))
    assert levels(found.products) == {"HIGHEST"}


def test_narrow_floats_are_multiplied_as_they_are() -> None:
    found = lowered(lambda x: x @ x, torch.randn(4, 4).bfloat16())
    assert levels(found.products) <= {"", "DEFAULT"}


def test_precision_is_part_of_what_programs_are_known_by(told: Any) -> None:
    sources = []
    for precision in MATRICES:
        told(precision, "none")
        sources += lowered(lambda x: x @ x, torch.randn(4, 4)).sources
        assert Precision.of_torch() == Precision(precision)
    assert len(set(sources)) == 3
