"""``python -m tpu_lowering selftest``: kernels, a model, a training step and a cache on one device, against eager.

It is made for the first person with a TPU: what it writes is one text to paste into a report.
"""

from __future__ import annotations

import copy
import dataclasses
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import nn

from tpu_lowering import aot, compat, releases
from tpu_lowering.capture.refusals import refusal_in
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.runtime import places

CALLS = 10
LIMIT = 1e-4
"""The largest difference from eager, of the largest element: all is computed in float32."""

Step = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One thing that is tried.

    Attributes:
        function: what is compiled. It may write to its arguments.
        given: its arguments.
        trained: parameters whose gradients are computed too; the function gives a loss then.
        eagerly: what eager computes in its place, where it cannot run a kernel; None for the function itself.
    """

    function: Step
    given: tuple[Any, ...]
    trained: tuple[torch.Tensor, ...] = ()
    eagerly: Step | None = None

    def results(self, function: Step) -> list[torch.Tensor]:
        """Results, gradients, and the arguments, which may have been written to."""
        own = copy.deepcopy(self.given)
        return [*compat.tree_leaves(self.called(function, own)), *own]

    def called(self, function: Step, given: tuple[Any, ...]) -> Any:
        result = function(*given)
        if not self.trained:
            return result
        return [result.detach(), *torch.autograd.grad(result, self.trained)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        name: of the trial.
        difference: from eager, of the largest element of each result; None if it failed.
        first, again: seconds of the first call, which compiles, and the median of those after it.
        bound: seconds that the compiler's bytes take at the chip's bandwidth; None where it was not asked.
        failure: the error's text, or "".
    """

    name: str
    difference: float | None = None
    first: float = 0.0
    again: float = 0.0
    bound: float | None = None
    failure: str = ""

    @property
    def passed(self) -> bool:
        return self.difference is not None and self.difference <= LIMIT


def _kernel() -> Trial:
    from tpu_lowering.demo.pallas_kernels import rms_norm_into

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        rms_norm_into(x * 2, weight, out, 1e-6)
        return out + 1

    def eagerly(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x * 2, (x.shape[1],), weight, 1e-6) + 1

    return Trial(function, (torch.randn(4096, 1024), torch.randn(1024)), eagerly=eagerly)


class Block(nn.Module):
    """A decoder block: causal attention and a gated MLP, each after a norm."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up, self.down = nn.Linear(width, 1024), nn.Linear(width, 1024), nn.Linear(1024, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        hidden = self.norms[1](x)
        return x + self.down(nn.functional.silu(self.gate(hidden)) * self.up(hidden))


def _model() -> Trial:
    return Trial(nn.Sequential(Block(), Block()).requires_grad_(False), (torch.randn(2, 256, 256),))


def _training() -> Trial:
    model = Block()
    return Trial(lambda x: model(x).square().mean(), (torch.randn(2, 256, 256),), tuple(model.parameters()))


def _cache() -> Trial:
    def function(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(1, at, row)
        return cache.sum((1, 2))

    return Trial(function, (torch.randn(8, 2048, 128), torch.randn(8, 1, 128), torch.tensor([1024])))


TRIALS: dict[str, Callable[[], Trial]] = {
    "a Pallas kernel that writes into an argument": _kernel,
    "two decoder blocks": _model,
    "a training step of a decoder block": _training,
    "a cache that is updated": _cache,
}


def run(device: str, target: str | None = None) -> list[Outcome]:
    """Tries everything on a device of JAX's.

    Args:
        device: such as "tpu:0"; "" for the CPU without that option.
        target: the chip whose compiler gives the bounds; "" for none, None for the device itself.

    Raises:
        TpuLoweringError: TL104 for a device that is not there, TL107 for an unknown target.
    """
    chip = _chip(device) if target is None else chips.find(target) if target else None
    return [_tried(name, make, device, chip) for name, make in TRIALS.items()]


def _chip(device: str) -> Chip | None:
    """The chip that a device is; None for the CPU."""
    found = places.find_device(device) if device else None
    return None if found is None or found.platform == "cpu" else chips.of_device(found.device_kind, "JAX")


def _tried(name: str, make: Callable[[], Trial], device: str, chip: Chip | None) -> Outcome:
    try:
        return _measured(name, make, device, chip)
    except Exception as error:
        return Outcome(name, failure=str(refusal_in(error) or traceback.format_exc()))


def _measured(name: str, make: Callable[[], Trial], device: str, chip: Chip | None) -> Outcome:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trial = make()
    expected = trial.results(trial.eagerly or trial.function)
    with compat.cold_dynamo():
        options: dict[str, Any] = {"device": device} if device else {}
        compiled = torch.compile(trial.function, backend="helion_tpu", options=options, fullgraph=True)
        began = time.perf_counter()
        found = trial.results(compiled)
        first = time.perf_counter() - began
        again = statistics.median(_seconds(trial, compiled) for _ in range(CALLS))
    bound = None
    if chip is not None:
        made = aot.aot_compile(trial.function, trial.given, target=chip.name, backward=bool(trial.trained))
        bound = made.bandwidth_bound_seconds
    return Outcome(name, _difference(found, expected), first, again, bound)


def _seconds(trial: Trial, function: Step) -> float:
    given = copy.deepcopy(trial.given)
    began = time.perf_counter()
    trial.called(function, given)
    return time.perf_counter() - began


def _difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest, as a share of the largest element of its result; infinite for a value that is no number."""
    largest = 0.0
    for got, wanted in zip(found, expected, strict=True):
        scale = max(float(wanted.abs().max()), 1e-3)
        difference = float((got.double() - wanted.double()).abs().max()) / scale
        largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def text(outcomes: Sequence[Outcome], device: str) -> str:
    """One text: what was run on which versions, and what came of it."""
    lines = [f"tpu_lowering selftest on {device or 'the CPU'}", *_surroundings(device), ""]
    for one in outcomes:
        lines.append(f"{'pass' if one.passed else 'FAIL'}  {one.name}")
        if one.failure:
            lines += [f"      {line}" for line in one.failure.splitlines()]
            continue
        bound = "" if one.bound is None else f"; the compiler's bytes at the chip's bandwidth: {one.bound * 1e6:.0f} us"
        lines.append(f"      largest difference from eager {one.difference:.1e} (limit {LIMIT:.0e})")
        lines.append(f"      first call {one.first:.2f} s, then {one.again * 1e6:.0f} us{bound}")
    return "\n".join(lines)


def _surroundings(device: str) -> list[str]:
    packages = ("tpu_lowering", "torch", "jax", "jaxlib", "libtpu", "helion", "torch_tpu", "torch_xla")
    found = [f"{name} {releases.version(name)}" for name in packages if releases.version(name)]
    kind = places.find_device(device).device_kind if device else platform.machine()
    return [f"Python {platform.python_version()} on {platform.platform()}", ", ".join(found), f"device kind: {kind}"]


def show(outcomes: Sequence[Outcome], device: str, console: Console) -> bool:
    """Prints the text; returns whether all passed."""
    console.print(text(outcomes, device), markup=False, highlight=False, soft_wrap=True)
    return all(one.passed for one in outcomes)
