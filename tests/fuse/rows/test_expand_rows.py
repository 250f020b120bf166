"""Operators that hold whole rows: they are taken apart where a kernel is made of the parts, and say why not elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from tpu_lowering import aot
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


class Seen:
    """An observer that keeps what is computed after the pass, and what the pass did."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.actions: list[tuple[str, str, str]] = []

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        if stage == "expand_rows":
            self.targets += [str(node.target) for node in module.graph.nodes if node.op == "call_function"]

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        if name == "expand_rows":
            self.actions += [(one.kind, one.node, one.code) for one in actions]

    def compiled(self, program: Program, source: Source) -> None:
        """Nothing of it is kept."""


def seen(fn: Callable[..., Any], *args: torch.Tensor) -> Seen:
    found = Seen()
    aot.capture(fn, args, {}, TPU7X, {}, (found,))
    return found


def test_a_softmax_that_is_a_kernel_is_taken_apart() -> None:
    found = seen(lambda x: torch.softmax(x, -1), torch.empty(8192, 1024))
    assert "aten._softmax.default" not in found.targets and "aten.exp.default" in found.targets
    assert found.actions == []


def test_a_softmax_of_no_kernel_stays_whole_and_says_why() -> None:
    """XLA keeps few rows of a product in VMEM."""
    found = seen(lambda x, w: torch.softmax(x @ w, -1) @ w, torch.empty(128, 128), torch.empty(128, 128))
    assert "aten._softmax.default" in found.targets and "aten.exp.default" not in found.targets
    assert found.actions == [("unfused", "_softmax", "TL608")]


def test_a_norm_of_bfloat16_images_stays_whole() -> None:
    """Its parts take a second pass for the variance, and no kernel is made of them."""

    def normed(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.silu(F.group_norm(F.conv2d(x, kernel, padding=1), 32)), kernel, padding=1)

    found = seen(normed, torch.empty(8, 320, 64, 64, dtype=bf16), torch.empty(320, 320, 3, 3, dtype=bf16))
    assert "aten.native_group_norm.default" in found.targets
    assert not [target for target in found.targets if "var" in target or "rsqrt" in target]


def test_of_two_the_one_that_is_a_kernel_is_taken_apart() -> None:
    def both(x: torch.Tensor, few: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.softmax(x, -1), torch.log_softmax(few @ w, -1) @ w

    found = seen(both, torch.empty(8192, 1024), torch.empty(128, 128), torch.empty(128, 128))
    assert "aten._softmax.default" not in found.targets and "aten._log_softmax.default" in found.targets
    assert found.actions == [("unfused", "_log_softmax", "TL608")]
