"""The kernels at sizes whose grids have 64 blocks or more, each in every way there is to run it on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import helion
import torch

from bench.cpu import flash, sides
from bench.cpu.plain import PLAIN
from bench.kernels import KERNELS, Tolerance
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs
from tpu_lowering.ir.programs import Program
from tpu_lowering.report.explain import Collector

Shapes = tuple[tuple[int, ...], ...]

SIDES = ("ours", "eager", "inductor", "inductor_pallas", "interpret")
"""Beside the plain forms."""
SMALL_SIDES = ("ours", "helion")


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel.

    Attributes:
        model: calls the kernel; a function of tensors.
        reference: the same in plain PyTorch.
        tolerance: how far results may be from the reference's.
        shapes: of the inputs, float32.
        small: shapes of 1,024 elements, for Helion's launcher; none if it is no Helion kernel.
        kernel: the Helion kernel that ``model`` calls by the name ``<case>_into``.
        seed: whether an int32 seed follows the inputs.
    """

    model: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    tolerance: Tolerance
    shapes: Shapes
    small: Shapes = ()
    kernel: Any = None
    seed: bool = False

    def inputs(self, shapes: Shapes) -> list[torch.Tensor]:
        """Normally distributed numbers, the same in every process."""
        generator = torch.Generator().manual_seed(0)
        numbers = [torch.randn(shape, generator=generator) for shape in shapes]
        return [*numbers, torch.tensor([123], dtype=torch.int32)] if self.seed else numbers


SHAPES: Mapping[str, tuple[Shapes, Shapes]] = {
    "exp": (((4096, 4096),), ((8, 128),)),
    "add": (((4096, 4096),) * 2, ((8, 128),) * 2),
    "softmax_two_pass": (((8192, 1024),), ((8, 128),)),
    "welford": (((4096, 2048), (2048,), (2048,)), ((8, 128), (128,), (128,))),
    "attention": (((1, 8, 4096, 64),) * 3, ((1, 1, 16, 64),) * 3),
    "bmm": (((16, 1024, 1024),) * 2, ((1, 32, 32),) * 2),
    "geglu": (((4096, 4096),) * 2, ((8, 128),) * 2),
    "low_mem_dropout": (((4096, 4096),), ((8, 128),)),
    "swiglu": (((4096, 4096),) * 2, ((8, 128),) * 2),
}

CASES: Mapping[str, Case] = {
    case.name: Case(
        case.model,
        case.reference,
        case.tolerance[torch.float32],
        *SHAPES[case.name],
        kernel=case.kernel,
        seed=case.name == "low_mem_dropout",
    )
    for case in KERNELS
} | {
    "flash_attention": Case(
        flash.model,
        flash.reference,
        Tolerance(1e-4, 1e-4),  # scores of size 10 without scale: exp enlarges their rounding
        ((1, 8, 2048, 128),) * 3,
    )
}


class Blocks(Collector):
    """How many grid steps the largest ``pallas_call`` of what was compiled has."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def compiled(self, program: Program, source: Source) -> None:
        super().compiled(program, source)
        for node in graphs.kernel_calls(program.module.graph):
            for equation in graphs.kernel_of(node).calls():
                self.most = max(self.most, math.prod(equation.params["grid_mapping"].grid))


def measure(name: str, rounds: int, names: Sequence[str] = SIDES, small: bool = False) -> dict[str, Any]:
    """The entry of one kernel: its sides at the large shapes, and Helion's launcher and ours at the small ones.

    Args:
        names: sides to measure beside the plain forms.
        small: run all sides at the small shapes, and no launcher: for tests.
    """
    case = CASES[name]
    shapes = case.small if small else case.shapes
    blocks = Blocks()
    groups = {"": _sides(name, (*PLAIN[name], *names), shapes, blocks)}
    if case.small and not small:
        groups["small"] = _sides(name, SMALL_SIDES, case.small, Blocks())
    found = {key: {"sides": group.measure(rounds)} for key, group in groups.items()}
    large = found.pop("")
    if "small" in found:
        found["small"]["note"] = _note(case.small)
    return {**large, **found, "blocks": blocks.most, "note": _note(shapes)}


def _sides(name: str, names: Sequence[str], shapes: Shapes, blocks: Blocks) -> sides.Sides:
    return sides.Sides({side: functools.partial(build, name, side, shapes, blocks) for side in names})


def _note(shapes: Shapes) -> str:
    return "float32 " + ", ".join(str(list(shape)) for shape in dict.fromkeys(shapes))


def build(name: str, side: str, shapes: Shapes, blocks: Blocks) -> Callable[[], Any]:
    """A call of one side; its result has been compared with the reference's."""
    case = CASES[name]
    arguments = case.inputs(shapes)
    check = sides.closeness(case.reference(*arguments), case.tolerance.relative, case.tolerance.absolute)
    if side in PLAIN[name]:
        return sides.jitted(PLAIN[name][side], arguments, check)
    if side == "eager":
        return sides.called(case.reference, arguments, check)
    if side == "ours":
        backend = functools.partial(helion_tpu, observers=(blocks,))
        return sides.called(sides.compiled(case.model, backend), arguments, check)
    if side == "interpret":
        ours = sides.compiled(case.model, "helion_tpu", {"cpu_kernels": "interpret"})
        return sides.called(ours, arguments, check)
    if side == "inductor":
        return sides.called(sides.compiled(case.reference, "inductor"), arguments, check)
    if side == "helion":
        return sides.called(launched(name, case), arguments, check)
    assert side == "inductor_pallas", f"expected a side, got {side!r}"
    return sides.pallas_of_inductor(case.reference, arguments, check)


def launched(name: str, case: Case) -> Callable[..., torch.Tensor]:
    """The model with a kernel that Helion's own launcher runs, in Pallas's interpreter."""
    kernel = helion.kernel(
        case.kernel.fn, configs=case.kernel.configs, static_shapes=True, backend="pallas", pallas_interpret=True
    )
    copied = sides.own_code(case.model)
    return type(copied)(
        copied.__code__, {**copied.__globals__, f"{name}_into": kernel}, copied.__name__, copied.__defaults__
    )
