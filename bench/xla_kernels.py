"""The nine kernels of `bench.kernels` in Pallas and in destination-passing style, for machines without Helion.

Each is an operator that writes its last argument, around the Pallas function of `bench.kernels.direct`.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from tpu_lowering import kernel_op


def _load() -> Any:
    """`bench.kernels.direct`, without the package around it, which needs Helion."""
    path = pathlib.Path(__file__).parent / "kernels" / "direct.py"
    spec = importlib.util.spec_from_file_location("bench_kernels_direct", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


direct = _load()
DIRECT: dict[str, Callable[..., Any]] = direct.DIRECT


@kernel_op("bench_xla::exp_into", mutates_args=("out",))
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["exp"](x)


@kernel_op("bench_xla::add_into", mutates_args=("out",))
def add_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["add"](x, y)


@kernel_op("bench_xla::softmax_two_pass_into", mutates_args=("out",))
def softmax_two_pass_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["softmax_two_pass"](x)


@kernel_op("bench_xla::welford_into", mutates_args=("out",))
def welford_into(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["welford"](x, weight, bias)


@kernel_op("bench_xla::attention_into", mutates_args=("out",))
def attention_into(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["attention"](q, k, v)


@kernel_op("bench_xla::bmm_into", mutates_args=("out",))
def bmm_into(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["bmm"](a, b)


@kernel_op("bench_xla::geglu_into", mutates_args=("out",))
def geglu_into(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["geglu"](a, b)


@kernel_op("bench_xla::low_mem_dropout_into", mutates_args=("out",))
def low_mem_dropout_into(x: torch.Tensor, seed: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["low_mem_dropout"](x, seed)


@kernel_op("bench_xla::swiglu_into", mutates_args=("out",))
def swiglu_into(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    return DIRECT["swiglu"](a, b)


def welford(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[1:], weight, bias)


def geglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.gelu(a, approximate="tanh") * b


def low_mem_dropout(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """The same mask, from the same hash; see `bench.kernels.low_mem_dropout`."""
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    fraction = ((direct.mix(direct.mix(index) + seed) >> 8) & 0xFFFFFF).float() * 2.0**-24
    return torch.where(fraction >= 0.25, x * (1.0 / 0.75), 0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel.

    Attributes:
        kernel: writes its last argument.
        reference: the PyTorch it must agree with.
        shapes: of its float32 inputs.
        shaped: shape of the result.
        absolute: largest difference allowed; relative differences may be 1e-5.
    """

    name: str
    kernel: Callable[..., None]
    reference: Callable[..., torch.Tensor]
    shapes: Sequence[tuple[int, ...]]
    shaped: tuple[int, ...]
    absolute: float = 1e-6

    def inputs(self) -> list[torch.Tensor]:
        """Normal float32 values from a fixed seed; dropout's seed is int32 [1]."""
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator) for shape in self.shapes]
        return [*inputs, torch.tensor([123], dtype=torch.int32)] if self.name == "low_mem_dropout" else inputs

    def model(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Arithmetic, the kernel on a buffer of its own, arithmetic: destination-passing style."""
        out = inputs[0].new_empty(self.shaped)
        self.kernel(inputs[0] * 0.5, *inputs[1:], out)
        return out + 1

    def expected(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.reference(inputs[0] * 0.5, *inputs[1:]) + 1


def _pair(*shape: int) -> list[tuple[int, ...]]:
    return [tuple(shape)] * 2


ROWS = (512, 2048)
SUMS = 5e-4  # of a thousand products of size 1: their float32 error does not shrink when they cancel

CASES: tuple[Case, ...] = (
    Case("exp", exp_into, torch.exp, [ROWS], ROWS),
    Case("add", add_into, torch.add, _pair(*ROWS), ROWS),
    Case("softmax_two_pass", softmax_two_pass_into, lambda x: torch.softmax(x, 1), [(256, 2048)], (256, 2048)),
    Case("welford", welford_into, welford, [(128, 1024), (1024,), (1024,)], (128, 1024), 2e-6),
    Case(
        "attention", attention_into, functional.scaled_dot_product_attention, [(1, 2, 1024, 64)] * 3,
        (1, 2, 1024, 64), 2e-6,
    ),
    Case("bmm", bmm_into, torch.bmm, [(2, 512, 1024), (2, 1024, 512)], (2, 512, 512), SUMS),
    Case("geglu", geglu_into, geglu, _pair(*ROWS), ROWS),
    Case("low_mem_dropout", low_mem_dropout_into, low_mem_dropout, [ROWS], ROWS),
    Case("swiglu", swiglu_into, lambda a, b: functional.silu(a) * b, _pair(*ROWS), ROWS),
)  # fmt: skip
"""By the names of `bench.kernels.KERNELS`, in its order."""
