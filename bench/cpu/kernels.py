"""The kernels at three sizes: at the largest in every way there is to run them on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import helion
import jax
import jax.numpy as jnp
import torch

from bench.cpu import flash, sides
from bench.cpu.plain import PLAIN
from bench.kernels import KERNELS, Tolerance
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs
from tpu_lowering.ir.programs import Program
from tpu_lowering.report.explain import Collector

Shapes = tuple[tuple[int, ...], ...]

SIZES = ("8x128", "512x512", "4096x4096")
"""By the arrays of an elementwise kernel, the largest last."""
SIDES = ("ours", "compute", "eager", "inductor", "inductor_pallas", "interpret")
"""At the largest size, beside the plain forms. *compute* is our program without the call from torch: under ``jax.jit``,
on JAX arrays, as the plain forms are."""
SMALLER_SIDES: Mapping[str, Sequence[str]] = {"8x128": ("ours", "compute", "helion"), "512x512": ("ours", "compute")}
"""At the others."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel.

    Attributes:
        model: calls the kernel; a function of tensors.
        reference: the same in plain PyTorch.
        tolerance: how far results may be from the reference's.
        shapes: of the inputs, float32, by size.
        kernel: the Helion kernel that ``model`` calls by the name ``<case>_into``; None if it is no Helion kernel.
        seed: whether an int32 seed follows the inputs.
    """

    model: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    tolerance: Tolerance
    shapes: Mapping[str, Shapes]
    kernel: Any = None
    seed: bool = False

    def inputs(self, shapes: Shapes) -> list[torch.Tensor]:
        """Normally distributed numbers, the same in every process."""
        generator = torch.Generator().manual_seed(0)
        numbers = [torch.randn(shape, generator=generator) for shape in shapes]
        return [*numbers, torch.tensor([123], dtype=torch.int32)] if self.seed else numbers


def _elementwise(count: int) -> list[Shapes]:
    return [((8, 128),) * count, ((512, 512),) * count, ((4096, 4096),) * count]


SHAPES: Mapping[str, Sequence[Shapes]] = {
    "exp": _elementwise(1),
    "add": _elementwise(2),
    "softmax_two_pass": _elementwise(1),
    "welford": [((rows, columns), (columns,), (columns,)) for ((rows, columns),) in _elementwise(1)],
    "attention": [((1, 1, 16, 64),) * 3, ((1, 8, 512, 64),) * 3, ((1, 8, 4096, 64),) * 3],
    "bmm": [((1, 32, 32),) * 2, ((4, 256, 256),) * 2, ((16, 1024, 1024),) * 2],
    "geglu": _elementwise(2),
    "low_mem_dropout": _elementwise(1),
    "swiglu": _elementwise(2),
    "flash_attention": [((1, 1, 8, 128),) * 3, ((1, 2, 1024, 128),) * 3, ((1, 8, 2048, 128),) * 3],
}
"""By size."""

CASES: Mapping[str, Case] = {
    case.name: Case(
        case.model,
        case.reference,
        case.tolerance[torch.float32],
        dict(zip(SIZES, SHAPES[case.name], strict=True)),
        kernel=case.kernel,
        seed=case.name == "low_mem_dropout",
    )
    for case in KERNELS
} | {
    "flash_attention": Case(
        flash.model,
        flash.reference,
        Tolerance(1e-4, 1e-4),  # scores of size 10 without scale: exp enlarges their rounding
        dict(zip(SIZES, SHAPES["flash_attention"], strict=True)),
    )
}


class Blocks(Collector):
    """How many grid steps the largest ``pallas_call`` of what was compiled has, and what was compiled last."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.last: tuple[Program, Source] | None = None

    def compiled(self, program: Program, source: Source) -> None:
        super().compiled(program, source)
        self.last = program, source
        for node in graphs.kernel_calls(program.module.graph):
            for equation in graphs.kernel_of(node).calls():
                self.most = max(self.most, math.prod(equation.params["grid_mapping"].grid))


def measure(name: str, rounds: int, names: Sequence[str] = SIDES, sizes: Sequence[str] = SIZES) -> dict[str, Any]:
    """The entry of one kernel: its sides at the last size, and under ``sizes`` those at the others.

    Args:
        names: sides to measure at the last size, beside the plain forms.
    """
    blocks, (*smaller, largest) = Blocks(), sizes
    groups = {size: _sides(name, SMALLER_SIDES[size], size, Blocks()) for size in smaller}
    large = _sides(name, names, largest, blocks).measure(rounds)
    found = {size: {"sides": group.measure(rounds), "note": _note(name, size)} for size, group in groups.items()}
    return {"sides": large, "sizes": found, "blocks": blocks.most, "note": _note(name, largest)}


def _sides(name: str, names: Sequence[str], size: str, blocks: Blocks) -> sides.Sides:
    case = CASES[name]
    wanted = [side for side in (*PLAIN[name], *names) if side != "helion" or case.kernel is not None]
    return sides.Sides({side: functools.partial(build, name, side, case.shapes[size], blocks) for side in wanted})


def _note(name: str, size: str) -> str:
    return "float32 " + ", ".join(str(list(shape)) for shape in dict.fromkeys(CASES[name].shapes[size]))


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
    if side == "compute":
        return sides.jitted(alone(case.model, arguments), arguments, check)
    if side == "interpret":
        ours = sides.compiled(case.model, "helion_tpu", {"cpu_kernels": "interpret"})
        return sides.called(ours, arguments, check)
    if side == "inductor":
        return sides.called(sides.compiled(case.reference, "inductor"), arguments, check)
    if side == "helion":
        return sides.called(launched(name, case), arguments, check)
    assert side == "inductor_pallas", f"expected a side, got {side!r}"
    return sides.pallas_of_inductor(case.reference, arguments, check)


def alone(model: Callable[..., torch.Tensor], arguments: Sequence[torch.Tensor]) -> Callable[..., jax.Array]:
    """Our program of a model as a function of JAX arrays."""
    seen = Blocks()
    sides.compiled(model, functools.partial(helion_tpu, observers=(seen,)))(*arguments)
    assert seen.last is not None
    program, source = seen.last
    function = load.load(program, source, "vectorized")
    constants = [jnp.asarray(value.numpy()) for value in program.constants().values()]
    return lambda *given: function(*(given[at] for at in program.inputs), *constants)[0]


def launched(name: str, case: Case) -> Callable[..., torch.Tensor]:
    """The model with a kernel that Helion's own launcher runs, in Pallas's interpreter."""
    kernel = helion.kernel(
        case.kernel.fn, configs=case.kernel.configs, static_shapes=True, backend="pallas", pallas_interpret=True
    )
    copied = sides.own_code(case.model)
    return type(copied)(
        copied.__code__, {**copied.__globals__, f"{name}_into": kernel}, copied.__name__, copied.__defaults__
    )
