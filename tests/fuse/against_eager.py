"""Functions compiled with generated kernels, their results and gradients against eager, and what kernels there were."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program

bf16, f32 = torch.bfloat16, torch.float32
TOLERANCE = {f32: {"rtol": 1e-5, "atol": 1e-5}, bf16: {"rtol": 3e-2, "atol": 3e-2}}


@dataclasses.dataclass
class Seen:
    """An observer that keeps what the pass did, and the sources of the kernels."""

    actions: list[tuple[str, Action]] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        """Nothing of it is kept."""

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self.actions += [
            (program.partition("_")[0], action) for action in actions if name in ("fuse_rows", "fuse_long_rows")
        ]

    def compiled(self, program: Program, source: Source) -> None:
        self.texts += [kernel.text for kernel in source.kernels.values()]  # type: ignore[attr-defined]

    def kernels(self, program: str) -> list[str]:
        """Names of the kernels of one program."""
        found = [action for name, action in self.actions if name == program and action.kind == "fused"]
        return [action.reason.partition(" are the kernel ")[2].partition(":")[0] for action in found]


def fused(fn: Callable[..., Any], seen: Seen, **options: Any) -> Callable[..., Any]:
    chosen = {"fuse": "always", **options}
    return torch.compile(fn, backend=functools.partial(helion_tpu, options=chosen, observers=(seen,)), fullgraph=True)


def normal(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Random numbers that want gradients, the same in every run."""
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def assert_trains_as_eager(fn: Callable[..., Any], args: Sequence[torch.Tensor], **options: Any) -> Seen:
    """Compares results and gradients, each gradient by its largest element.

    Returns:
        What was done.
    """
    copies = [value.detach().clone().requires_grad_() for value in args]
    seen, tolerance = Seen(), TOLERANCE[args[0].dtype]
    results, wanted = fused(fn, seen, **options)(*args), fn(*copies)
    torch.testing.assert_close(results, wanted, **tolerance)
    gradient = [torch.randn_like(value) for value in (wanted if isinstance(wanted, tuple) else (wanted,))]
    torch.autograd.backward(results, gradient)
    torch.autograd.backward(wanted, gradient)
    for value, copy in zip(args, copies, strict=True):
        scale = copy.grad.abs().max()  # type: ignore[union-attr]
        torch.testing.assert_close(value.grad / scale, copy.grad / scale, **tolerance)  # type: ignore[operator]
    return seen
