"""Pointwise work around kernels: moved into them, with the results that it has outside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

import tpu_lowering
from bench.kernels import KERNELS, KernelCase
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program

CASES = {case.name: case for case in KERNELS}
# Where the pallas_call of a kernel has blocks that work can be done on.
FUSED = ("add", "bmm", "exp", "geglu", "swiglu", "welford")


@dataclasses.dataclass
class Seen:
    """An observer that keeps what the pass did."""

    actions: list[Action] = dataclasses.field(default_factory=list)

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """Nothing of it is kept."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self.actions += actions if name == "fuse_around_kernels" else ()

    def compiled(self, program: Program, source: Source) -> None:
        """Nor of this."""


def run(fn: Callable[..., Any], args: Sequence[torch.Tensor], **options: Any) -> tuple[Any, list[Action]]:
    """A function's result with fusion, and what the pass did."""
    seen = Seen()
    chosen = {"fuse": "always", **options}
    compiled = torch.compile(
        fn, backend=functools.partial(helion_tpu, options=chosen, observers=(seen,)), fullgraph=True, dynamic=False
    )
    with torch.no_grad():
        return compiled(*args), seen.actions


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_the_nine_kernels(name: str) -> None:
    case: KernelCase = CASES[name]
    torch.manual_seed(0)
    first, *rest = case.example(True)
    bias = torch.randn(case.reference(first, *rest).shape)

    def fn(bias: torch.Tensor, first: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return torch.relu(case.model(first * 0.5 if first.is_floating_point() else first, *rest) + bias)

    def wanted(first: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return torch.relu(case.reference(first * 0.5, *rest) + bias)

    result, actions = run(fn, (bias, first, *rest), poison=True)
    torch.testing.assert_close(result, wanted(first, *rest), rtol=1e-4, atol=1e-3)
    kinds = {action.kind for action in actions}
    assert kinds == {"fused"} if name in FUSED else kinds <= {"fused", "unfused"}


def test_a_result_that_is_needed_in_between_stays() -> None:
    case = CASES["exp"]
    x = torch.randn(64, 256)

    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = case.model(x)
        return y, y + 1

    result, actions = run(fn, (x,))
    torch.testing.assert_close(result, (x.exp(), x.exp() + 1))
    assert actions == []


def test_work_that_waits_for_the_kernel_stays_outside() -> None:
    """``y.sum()`` needs all of the kernel's result, so what multiplies by it cannot be a part of the kernel."""
    case = CASES["exp"]
    x = torch.randn(64, 256)

    def fn(x: torch.Tensor) -> torch.Tensor:
        y = case.model(x)
        return y * y.sum()

    result, actions = run(fn, (x,))
    torch.testing.assert_close(result, x.exp() * x.exp().sum())
    assert actions == []


def test_a_wider_operand_is_not_read_in_place_of_a_narrow_one() -> None:
    """The sum of two arrays is one array for the kernel to read."""
    case = CASES["exp"]
    x, y = torch.randn(64, 256), torch.randn(64, 256)
    result, actions = run(lambda x, y: case.model(x + y), (x, y))
    torch.testing.assert_close(result, (x + y).exp())
    assert actions == []


def test_broadcast_operands_and_a_cast() -> None:
    case = CASES["exp"]
    x, row, column = torch.randn(96, 256), torch.randn(256), torch.randn(96, 1)

    def fn(x: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return (case.model(x.to(torch.bfloat16).float()) * row + column).to(torch.bfloat16)

    result, actions = run(fn, (x, row, column))
    wanted = (x.to(torch.bfloat16).float().exp() * row + column).to(torch.bfloat16)
    torch.testing.assert_close(result, wanted, rtol=1e-2, atol=1e-2)
    assert [action.kind for action in actions] == ["fused"]
    assert actions[0].reason == "5 operations around exp_into are part of the kernel"


def test_a_whole_tpu_program_of_one_operation() -> None:
    """What the compiler makes of it for a tpu7x: one operation that reads the operand and writes the result."""
    case = CASES["exp"]
    x = torch.empty(4096, 1024)
    program = tpu_lowering.aot_compile(lambda x: case.model(x * 2) + 1, (x,), target="tpu7x")
    assert [operation.opcode for operation in program.entry_operations] == ["custom-call:tpu_custom_call"]
    assert program.hbm_bytes == 2 * x.nbytes
