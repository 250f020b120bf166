"""What fusing makes of a program by its estimates alone, against XLA alone.

``aot_compile`` compiles both and returns the one that moves fewer bytes, so it never moves more. A program that a
runtime compiles itself goes by the estimates of ``tpu_lowering/fuse``; these are the figures of that program.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import fusion_models, opinfo, zoo
from bench.figures import Figures
from bench.kernels import KERNELS
from bench.programs import captured_training
from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.observers import Observer
from tpu_lowering.runtime.aot.capture import Captured
from tpu_lowering.runtime.aot.program import TpuProgram

FUSE = {"xla": "never", "fused": "tpu"}
"""The rows, and the option ``fuse`` of each."""

Capture = Callable[..., Sequence[Captured]]
"""Captures the programs of a case for a target, with an option ``fuse`` and, if given, observers."""


def of_operator(name: str, dtype: torch.dtype) -> Capture:
    """An entry of torch's operator database; see ``bench.opinfo``."""

    def capture(target: Chip, fuse: str) -> list[Captured]:
        sample = opinfo.largest_sample(name, dtype)
        assert sample is not None, f"expected an entry with a sample that compiles, got {name}"
        with opinfo.unseeded():
            return [aot.capture(sample.function, sample.args, {}, target, {"fuse": fuse}, ())]

    return capture


def of_function(fn: Callable[..., Any], example: Callable[[], Sequence[Any]]) -> Capture:
    """A function without gradients; ``example`` makes its arguments."""

    def capture(target: Chip, fuse: str, observers: Sequence[Observer] = ()) -> list[Captured]:
        return [aot.capture(fn, example(), {}, target, {"fuse": fuse}, observers)]

    return capture


def of_kernel(name: str) -> Capture:
    """One of the nine Helion kernels in its model."""
    (case,) = (case for case in KERNELS if case.name == name)
    return of_function(case.model, lambda: case.example(False))


def of_zoo(name: str, training: bool) -> Capture:
    """A model of the suite at its toy sizes: its forward, or forward and backward of its loss."""
    chosen = zoo.MODELS[name]

    def capture(target: Chip, fuse: str, observers: Sequence[Observer] = ()) -> list[Captured]:
        torch.manual_seed(0)
        model, inputs = chosen.build(), chosen.inputs()
        if training:
            return captured_training(model, lambda model: chosen.step(model, inputs)[0], target, fuse, observers)
        function = lambda **given: chosen.result(model(**given))  # noqa: E731
        return [aot.capture(function, (), inputs, target, {"fuse": fuse}, observers)]

    return capture


def of_model(name: str) -> Capture:
    """The forward of a model of ``fusion_models``, by the first word of its name there."""
    (build,) = (build for known, build in fusion_models.MODELS.items() if known.startswith(f"{name},"))

    def capture(target: Chip, fuse: str) -> list[Captured]:
        model, tokens = build()
        model = model.to(torch.bfloat16)
        return [aot.capture(lambda ids: model(input_ids=ids).logits, (tokens,), {}, target, {"fuse": fuse}, ())]

    return capture


def run(capture: Capture, row: str, target: str, quick: bool = False) -> dict[str, Any]:
    """The figures of a row, the bytes of all arguments and results, and the names of the kernels that fusing made.

    Args:
        quick: leave out the schedules of kernels.
    """
    chosen = chips.find(target)
    captured = capture(chosen, FUSE[row])
    compiled = [_compiled(one, chosen, quick) for one in captured]
    return {
        **Figures.of(compiled).as_entry(),
        "least_bytes": sum(program.argument_bytes + program.output_bytes for program in compiled),
        "kernels": [name for one in captured for name in generated(one)],
        "same_as": digest(captured),
    }


def generated(captured: Captured) -> list[str]:
    return [name for name, kernel in captured.source.kernels.items() if kernel.generated]


def digest(captured: Sequence[Captured]) -> str:
    """Equal for programs that are equal before XLA compiles them."""
    return hashlib.sha256(b"".join(one.stablehlo for one in captured)).hexdigest()[:16]


KEPT = 4
_kept: collections.OrderedDict[tuple[str, str], TpuProgram] = collections.OrderedDict()


def _compiled(captured: Captured, target: Chip, quick: bool) -> TpuProgram:
    """Compiled, unless an equal program was a moment ago: nothing is fused in most cases. Schedules of attention are
    not simulated, which takes minutes."""
    key = (digest([captured]), target.name)
    if key not in _kept:
        names = generated(captured)
        simulate = not quick and bool(names) and not any("attention" in name for name in names)
        _kept[key] = aot.compile_captured(captured, target, True, simulate)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return _kept[key]
