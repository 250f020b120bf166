"""How compile time grows with the number of layers of a plain model, without kernels of its own."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import nn

from bench.cpu.timing import entry
from tpu_lowering.backend import helion_tpu
from tpu_lowering.report.explain import Collector

SIZES = (25, 50, 100, 200)
WIDTH = 64
CASES = ("blocks",)


class Block(nn.Module):
    """The feed-forward half of a transformer's layer: x + second(gelu(first(norm(x)))), [rows, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(nn.functional.gelu(self.first(self.norm(x))))


def measure(name: str, rounds: int, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """The entry of the section's one case.

    Its sides are numbers of layers, in seconds to the first result from a cold Dynamo cache, and ``<number>, stages``:
    the part of it from the captured graph to the lowered one.
    """
    assert name in CASES, f"expected one of {CASES}, got {name!r}"
    compile_once(sizes[0])  # imports, and what JAX does at its first use
    totals: dict[int, list[float]] = {size: [] for size in sizes}
    stages: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            total, own = compile_once(size)
            totals[size].append(total)
            stages[size].append(own)
    sides = {str(size): entry(values) for size, values in totals.items()}
    sides |= {f"{size}, stages": entry(values) for size, values in stages.items()}
    return {"sides": sides, "note": f"float32 [8, {WIDTH}]"}


def compile_once(layers: int) -> tuple[float, float]:
    """Seconds of all of it, and of our stages up to the lowered graph; the result is checked."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Block() for _ in range(layers))).eval(), torch.randn(8, WIDTH)
    collector = Collector()
    backend = functools.partial(helion_tpu, observers=(collector,))
    with torch.inference_mode():
        began = time.perf_counter()
        result = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(x)
        total = time.perf_counter() - began
        torch.testing.assert_close(result, model(x), rtol=1e-4, atol=1e-4)
    return total, sum(collector.seconds.values())
