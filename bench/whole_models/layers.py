"""How long many layers of the Llama geometry take to compile: ours, and one XLA compile of the hand-written twin."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.whole_models import llama
from bench.whole_models.case import Case
from bench.whole_models.programs import twin
from tpu_lowering import aot


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one number of layers.

    Attributes:
        ours: ``aot_compile``, from the function to the program.
        plain: the same without generated kernels, which is one compile.
        hand: tracing and compiling the twin.
    """

    layers: int
    ours: float
    plain: float
    hand: float


def measured(layers: int, target: str) -> Seconds:
    """A prefill of 4x2048 tokens."""
    sizes = llama.Sizes(layers=layers)
    built = llama.prefill(sizes, False)
    found: list[float] = []
    for options in ({}, {"fuse": "never"}):
        began = time.monotonic()
        aot.aot_compile(built.function, built.inputs, target=target, options=options)
        found.append(time.monotonic() - began)
    case = Case("llama_layers", f"{layers} layers", False, lambda small: llama.prefill(sizes, small))
    return Seconds(layers, found[0], found[1], twin(case, built, target).seconds)


def main(counts: Sequence[int], target: str) -> int:
    table = Table("layers", "ours", "without kernels", "hand", "ours / hand", title=f"seconds, for {target}")
    for layers in counts:
        one = measured(layers, target)
        cells = (f"{x:.1f}" for x in (one.ours, one.plain, one.hand))
        table.add_row(str(layers), *cells, f"{one.ours / one.hand:.2f}")
        Console().print(table)
    return 0
