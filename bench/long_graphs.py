"""How compile time grows with the length of a graph, for a TPU that need not be there.

Three cases: ``x * 1.01`` n times and a softmax; the forward of a Llama-style decoder of n layers; its training step.
Each is captured for several n, twice as long each time, in a process of its own that has compiled a short graph of
other sizes before, so that imports and first uses are paid. Times are split (``bench.stopwatch``) into Dynamo and
AOTAutograd, our own stages, and JAX's lowering; XLA's compile time is measured where it is asked for.

The laws: twice the length takes at most 2.2 times our time, and our stages take at most a tenth of XLA's time for the
decoder.
"""

from __future__ import annotations

import functools
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import nn

from bench.markdown import table
from bench.model_compile_time import Nursery, serve
from bench.stopwatch import JAX, OURS, TORCH, Stopwatch, TimedRuntime, watching
from bench.store import versions
from tpu_lowering import compat
from tpu_lowering.ir import chips
from tpu_lowering.kernels import function_values
from tpu_lowering.runtime.aot import compiler

CHIP = "tpu7x"
GROWTH, SHARE = 2.2, 0.1
SECONDS = 3000.0  # for one measurement

Figures = dict[str, Any]
"""Of one compilation: ``nodes``, ``total``, ``layers`` and ``stages`` in seconds, and ``xla`` if it was asked for."""


def chain(count: int, x: torch.Tensor) -> torch.Tensor:
    """``x * 1.01`` so many times, then a softmax of its rows."""
    for _ in range(count):
        x = x * 1.01
    return torch.softmax(x, -1)


def compile_chain(count: int, backend: Callable[..., Any], rows: int = 4096) -> None:
    """Compiles a chain over float32 [rows, 1024]."""
    with torch.no_grad():
        torch.compile(functools.partial(chain, count), backend=backend, fullgraph=True, dynamic=False)(
            torch.zeros(rows, 1024)
        )


def decoder(layers: int, hidden: int) -> nn.Module:
    """A Llama-style decoder with random weights."""
    config = transformers.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * hidden, vocab_size=1024, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def compile_decoder(layers: int, backend: Callable[..., Any], trains: bool, hidden: int = 256) -> None:
    """Compiles the loss of a decoder of so many layers over 2 by 128 tokens in bfloat16; with its gradients, if it
    trains."""
    model = decoder(layers, hidden).to(torch.bfloat16)
    tokens = torch.zeros(2, 128, dtype=torch.int64)

    def loss(model: Any) -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    with torch.set_grad_enabled(trains):
        result = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)(model)
    if trains:
        result.backward()


Compile = Callable[[int, Callable[..., Any]], None]
CASES: dict[str, tuple[Compile, Compile, tuple[int, ...]]] = {
    "chain": (compile_chain, functools.partial(compile_chain, rows=512), (200, 400, 800, 1600, 3200)),
    "decoder, forward": (
        functools.partial(compile_decoder, trains=False),
        functools.partial(compile_decoder, trains=False, hidden=64),
        (4, 8, 16, 32),
    ),
    "decoder, training": (
        functools.partial(compile_decoder, trains=True),
        functools.partial(compile_decoder, trains=True, hidden=64),
        (4, 8, 16, 32),
    ),
}
"""For each case what compiles it, what warms up, and its sizes."""


def measure(name: str, size: str, xla: str) -> Figures:
    """Compiles a case once, in this process, whose caches are cold for it."""
    run, warm_up, _ = CASES[name]
    capture(warm_up, 1)
    watch, runtime = capture(run, int(size))
    stages = {stage: seconds for (layer, stage), seconds in watch.seconds.items() if layer == OURS}
    layers = {layer: watch.layer(layer) for layer in (TORCH, OURS, JAX)}
    figures = {"nodes": watch.nodes, "total": sum(layers.values()), "layers": layers, "stages": stages}
    if xla == "xla":
        figures["xla"] = sum(xla_seconds(captured, runtime.chip) for captured in runtime.captured)
    return figures


def capture(run: Compile, size: int) -> tuple[Stopwatch, TimedRuntime]:
    """Captures a case for the chip, watched."""
    with compat.cold_dynamo(), function_values.allowed():
        watch = Stopwatch()
        runtime = TimedRuntime(chips.find(CHIP), watch)
        with watching(watch) as backend:
            run(size, functools.partial(backend, runtime=runtime, observers=(watch,)))
        watch.stop()
    return watch, runtime


def xla_seconds(captured: Any, chip: chips.Chip) -> float:
    """Seconds that libtpu takes to compile a program, without starting its process: the fewer of those on the clock,
    which other load of the machine adds to, and of the CPU, to which each of its threads does."""
    compiled = compiler.compile_artifact(captured.artifact, chip, (), captured.source, False, SECONDS)
    return min(compiled.facts["compile_seconds"], compiled.facts["compile_cpu_seconds"])


def document(samples: Mapping[str, Mapping[str, Sequence[Figures]]]) -> str:
    """Tables as text: times by layer with their growth, and our stages by size."""
    parts: list[str] = []
    for name, sizes in samples.items():
        found = {int(size): middle(measured) for size, measured in sizes.items() if measured}
        if not found:
            continue
        headers = ["n", "nodes", TORCH, OURS, JAX, "XLA", "ours / ours(n / 2)", "ours / XLA", "ms a node"]
        rows = [_row(size, figures, found.get(size // 2)) for size, figures in found.items()]
        stages = sorted({stage for figures in found.values() for stage in figures["stages"]})
        stages.sort(key=lambda stage: -found[max(found)]["stages"].get(stage, 0.0))
        by_stage = [[stage, *(f"{f['stages'].get(stage, 0.0):.3f}" for f in found.values())] for stage in stages]
        parts += [f"## {name}, seconds", table(headers, rows), table(["stage", *map(str, found)], by_stage)]
    return "\n".join(parts)


def _row(size: int, figures: Figures, half: Figures | None) -> list[str]:
    layers, xla = figures["layers"], figures.get("xla")
    ours = layers[OURS]
    return [
        str(size), str(figures["nodes"]), f"{layers[TORCH]:.2f}", f"{ours:.2f}", f"{layers[JAX]:.2f}",
        "-" if xla is None else f"{xla:.2f}", "-" if half is None else f"{ours / half['layers'][OURS]:.2f}",
        "-" if xla is None else f"{ours / xla:.3f}", f"{ours / figures['nodes'] * 1e3:.2f}",
    ]  # fmt: skip


def middle(measured: Sequence[Figures]) -> Figures:
    """The measurement with the median of our time."""
    middle = statistics.median_low([figures["layers"][OURS] for figures in measured])
    return next(figures for figures in measured if figures["layers"][OURS] == middle)


def broken_laws(samples: Mapping[str, Mapping[str, Sequence[Figures]]]) -> list[str]:
    """What is said of each law that does not hold."""
    broken: list[str] = []
    for name, sizes in samples.items():
        found = {int(size): middle(measured) for size, measured in sizes.items() if measured}
        for size, figures in found.items():
            ours, half = figures["layers"][OURS], found.get(size // 2)
            if half is not None and ours > GROWTH * half["layers"][OURS]:
                broken.append(f"{name}: n = {size} takes {ours / half['layers'][OURS]:.2f} times n = {size // 2}")
            if name != "chain" and "xla" in figures and ours > SHARE * figures["xla"]:
                broken.append(f"{name}: n = {size} takes {ours / figures['xla']:.3f} of XLA's time")
    return broken


def main(
    out: pathlib.Path | None, names: Sequence[str] = (), largest: int = 0, xla: Sequence[int] = (), rounds: int = 1
) -> int:
    """Measures, prints tables, writes a file of JSON; 1 if a law does not hold or something failed.

    Args:
        out: the file, or None.
        names: parts of names of cases; all, if empty.
        largest: n up to which is measured; 0 for all.
        xla: n for which libtpu compiles the decoder too.
        rounds: measurements of each; the median counts.
    """
    chosen = {name: case for name, case in CASES.items() if not names or any(part in name for part in names)}
    samples: dict[str, dict[str, list[Figures]]] = {
        name: {str(size): [] for size in sizes if not largest or size <= largest}
        for name, (_, _, sizes) in chosen.items()
    }
    failures: list[str] = []
    console, nursery = Console(width=200), Nursery("bench.long_graphs")
    for number in range(rounds):
        for name, sizes in samples.items():
            for size, measured in sizes.items():
                asked = "xla" if number == 0 and name != "chain" and int(size) in xla else ""
                answer = nursery.measure(name, size, asked)
                if isinstance(answer, str):
                    failures.append(f"{name}, n = {size}: {answer}")
                else:
                    measured.append(answer)
                    console.print(f"{name}, n = {size}: ours {answer['layers'][OURS]:.2f} s", markup=False)
    nursery.stop()
    if out is not None:
        out.write_text(json.dumps({"versions": versions(), "samples": samples, "failures": failures}, indent=1) + "\n")
    console.print(document(samples), markup=False)
    said = failures + broken_laws(samples)
    console.print("\n".join(said) or "all laws hold", markup=False)
    return 1 if said else 0


if __name__ == "__main__":
    serve(measure, SECONDS)
