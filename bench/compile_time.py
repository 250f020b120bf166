"""How compile time grows with the number of kernel calls in one graph.

A chain of ``n`` destination-passing calls of one Helion kernel, each with an allocation and pointwise work of its
own, is compiled from a cold Dynamo cache for several ``n``. Sizes take turns, so that a change of the machine's
load hits all of them; the median over the rounds is reported, split into Dynamo and AOTAutograd, our stages, and
XLA.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time

import helion
import helion.language as hl
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tpu_lowering.backend import helion_tpu
from tpu_lowering.report.explain import Collector

SIZES = (25, 50, 100, 200)


@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def shift_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """out = x + 1, tile by tile."""
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] + 1


def chain(calls: int, x: torch.Tensor) -> torch.Tensor:
    """``calls`` times: allocate, call the kernel, scale."""
    for _ in range(calls):
        out = torch.empty_like(x)
        shift_into(x, out)
        x = out * 0.5
    return x


@dataclasses.dataclass(frozen=True)
class Sample:
    """Seconds of one compilation: all of it, our stages up to the lowered graph, and programs made."""

    total: float
    stages: float
    programs: int


def compile_once(calls: int) -> Sample:
    """Compiles a chain from a cold Dynamo cache and checks its result."""
    torch._dynamo.reset()
    collector = Collector()
    backend = functools.partial(helion_tpu, observers=(collector,))
    x = torch.zeros(16, 256)
    began = time.perf_counter()
    result = torch.compile(functools.partial(chain, calls), backend=backend, fullgraph=True, dynamic=False)(x)
    total = time.perf_counter() - began
    torch.testing.assert_close(result, torch.full_like(x, 1 - 0.5**calls))
    report = collector.report()
    assert report.kernel_calls == calls, f"expected {calls} kernel calls, got {report.kernel_calls}"
    return Sample(total, sum(report.seconds.values()), report.programs_after)


def linear_fit(sizes: tuple[int, ...], seconds: list[float]) -> tuple[float, float, float]:
    """Least squares of ``seconds = a + b * size``: (a, b, coefficient of determination)."""
    slope, offset = np.polyfit(sizes, seconds, 1)
    rest = np.asarray(seconds) - (offset + slope * np.asarray(sizes))
    spread = np.asarray(seconds) - np.mean(seconds)
    return float(offset), float(slope), float(1 - (rest @ rest) / (spread @ spread))


def main(rounds: int = 3) -> None:
    """Prints the table and the fit."""
    compile_once(SIZES[0])  # imports, Helion's and JAX's first-use costs
    samples: dict[int, list[Sample]] = {size: [] for size in SIZES}
    for _ in track(range(rounds), description="rounds"):
        for size in SIZES:
            samples[size].append(compile_once(size))
    table = Table(title="compile time of a chain of kernel calls")
    for column in ("kernel calls", "programs", "total, s (median)", "spread, s", "our stages, s", "ms a call"):
        table.add_column(column, justify="right")
    medians = []
    for size, group in samples.items():
        total = statistics.median(sample.total for sample in group)
        stages = statistics.median(sample.stages for sample in group)
        spread = max(sample.total for sample in group) - min(sample.total for sample in group)
        medians.append(total)
        programs = max(sample.programs for sample in group)
        table.add_row(
            str(size), str(programs), f"{total:.2f}", f"{spread:.2f}", f"{stages:.2f}", f"{total / size * 1e3:.0f}"
        )
    console = Console()
    console.print(table)
    offset, slope, determination = linear_fit(SIZES, medians)
    console.print(f"fit: {offset:.2f} s + {slope * 1e3:.1f} ms a call, R² = {determination:.4f}")
