"""Kernels in destination-passing style on torch_xla's tensors, three ways: `python -m bench.xla`.

helion_tpu: the graph as one HLO computation. torch_xla: eager, operator by operator. openxla: torch_xla's own
`torch.compile` backend. Every call ends at a step boundary (`torch_xla.sync()`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_xla
from rich.console import Console
from rich.table import Table

from bench.xla_counts import Counts, count, settle
from bench.xla_kernels import CASES
from tpu_lowering.demo import decoder, text_tokens

CALLS = 10
TEXT = "A kernel that writes every element of a buffer needs nobody to fill it first. " * 3

Ways = dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]
WAYS: Ways = {
    "helion_tpu": lambda model: torch.compile(model, backend="helion_tpu", fullgraph=True),
    "torch_xla": lambda model: model,
    "openxla": lambda model: torch.compile(model, backend="openxla"),
}


def measure(run: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> tuple[torch.Tensor, Counts, Counts, float]:
    """One first call, then `CALLS` more.

    Returns:
        The last result, what the first call did, what the others did, and the median milliseconds of one of them.
    """
    results: list[torch.Tensor] = []
    times: list[float] = []

    def call() -> None:
        began = time.perf_counter()
        results[:] = [run(*inputs)]
        settle()
        times.append((time.perf_counter() - began) * 1e3)

    with torch.no_grad():
        first = count(call)
        times.clear()
        more = count(lambda: [call() for _ in range(CALLS)])
    return results[0], first, more, statistics.median(times)


def cases() -> list[tuple[str, Callable[..., Any], list[torch.Tensor], torch.Tensor]]:
    """(name, model, inputs on the device, expected) of the nine kernels and the demo's decoder."""
    device = torch_xla.device()
    found = [
        (case.name, case.model, [value.to(device) for value in case.inputs()], case.expected(*case.inputs()))
        for case in CASES
    ]
    tokens, plain = text_tokens(TEXT, 128), decoder(kernels=False)
    model = decoder(kernels=True).to(device)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, use_cache=False).logits

    with torch.no_grad():
        return [*found, ("decoder", logits, [tokens.to(device)], plain(tokens, use_cache=False).logits)]


def main() -> None:
    table = Table(title=f"torch_xla {torch_xla.__version__}, one first call and {CALLS} more")
    for column in ("model", "way", "compilations", "later", "executions a call", "ms a call", "largest difference"):
        table.add_column(column)
    for name, model, inputs, expected in cases():
        for way, wrap in WAYS.items():
            torch._dynamo.reset()
            try:
                result, first, more, milliseconds = measure(wrap(model), inputs)
            except Exception as error:  # torch_xla's own ways may refuse a model
                table.add_row(name, way, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:60]}")
                continue
            difference = float((result.cpu() - expected).abs().max())
            counts = (first.compilations, more.compilations, more.executions / CALLS)
            table.add_row(name, way, *map(str, counts), f"{milliseconds:.2f}", f"{difference:.1e}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
