"""Kernels in destination-passing style on torch_xla's tensors, three ways in turns: `python -m bench.xla`.

See `bench.xla_report` for the ways and what is counted. Writes `xla.json` and `xla.md` to `bench/results`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_xla
from rich.console import Console

from bench import xla_report
from bench.store import Store, versions
from bench.xla_counts import Counts, count, settle
from bench.xla_kernels import CASES
from tpu_lowering.demo import decoder, text_tokens
from tpu_lowering.releases import version

RESULTS = pathlib.Path(__file__).parent / "results"
ROUNDS = 20
TEXT = "A kernel that writes every element of a buffer needs nobody to fill it first. " * 3

WAYS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "helion_tpu": lambda model: torch.compile(model, backend="helion_tpu", fullgraph=True),
    "torch_xla": lambda model: model,
    "openxla": lambda model: torch.compile(model, backend="openxla"),
}


@dataclasses.dataclass(frozen=True)
class Compared:
    """One model.

    Attributes:
        model: takes tensors of any device, and may write to them.
        inputs: makes them, on the CPU, equal each time.
        expected: the result of the last of so many calls, by eager torch on the CPU.
    """

    name: str
    model: Callable[..., torch.Tensor]
    inputs: Callable[[], list[torch.Tensor]]
    expected: Callable[[int], torch.Tensor]


class Side:
    """One way to run one model: its inputs on the device, and what it has measured."""

    def __init__(self, case: Compared, way: str) -> None:
        self.inputs = [value.to(torch_xla.device()) for value in case.inputs()]
        self.run = WAYS[way](case.model)
        self.result = torch.empty(0)
        self.samples: list[float] = []
        self.later: list[Counts] = []
        began = time.perf_counter()
        self.first_counts = count(self._call)
        self.first = time.perf_counter() - began

    def _call(self) -> None:
        self.result = self.run(*self.inputs)
        settle()

    def sample(self) -> None:
        """One more call, timed and counted."""
        settle()
        seconds: list[float] = []

        def timed() -> None:
            began = time.perf_counter()
            self._call()
            seconds.append(time.perf_counter() - began)

        self.later.append(count(timed))
        self.samples += seconds

    def entry(self, expected: torch.Tensor) -> dict[str, Any]:
        """What is stored."""
        calls = len(self.later)
        return {
            "compilations": self.first_counts.compilations,
            "later": sum(counts.compilations for counts in self.later),
            "executions": sum(counts.executions for counts in self.later) / calls,
            "transfers": sum(counts.to_host + counts.to_device for counts in self.later) / calls,
            "first": round(self.first, 4),
            "samples": [round(sample, 6) for sample in self.samples],
            "difference": float((self.result.cpu() - expected).abs().max()),
        }


def measure(case: Compared, rounds: int) -> dict[str, dict[str, Any]]:
    """Entries of one model, by way; a way that fails, because torch_xla refuses the model, says so."""
    torch._dynamo.reset()
    sides: dict[str, Side] = {}
    entries: dict[str, dict[str, Any]] = {}
    order = random.Random(0)
    with torch.no_grad():
        for way in WAYS:
            try:
                sides[way] = Side(case, way)
            except Exception as error:
                message = (str(error).splitlines() or [""])[0][:80]
                entries[way] = {"error": f"{type(error).__name__}: {message}"}
        for _ in range(rounds):
            for way in order.sample(list(sides), len(sides)):
                sides[way].sample()
        expected = case.expected(rounds + 1)
        return {way: sides[way].entry(expected) if way in sides else entries[way] for way in WAYS}


def cases() -> list[Compared]:
    """The nine kernels, a decode step that updates its caches in place, and the demo's decoder."""
    kernels = [
        Compared(case.name, case.model, case.inputs, lambda _, case=case: case.expected(*case.inputs()))
        for case in CASES
    ]
    tokens, plain = text_tokens(TEXT, 128), decoder(kernels=False)
    model = decoder(kernels=True).to(torch_xla.device())

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, use_cache=False).logits

    return [
        *kernels,
        Compared("decode_step", decode_step, decode_state, decoded),
        Compared("decoder", logits, lambda: [tokens], lambda _: plain(tokens, use_cache=False).logits),
    ]


def decode_step(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """One token: both caches and the position are updated in place."""
    keys.index_copy_(1, position, (q * 0.5)[:, None])
    values.index_copy_(1, position, (q + 1)[:, None])
    seen = torch.arange(keys.shape[1], device=q.device) <= position
    scores = torch.where(seen, (keys @ q[:, :, None])[..., 0] * q.shape[1] ** -0.5, float("-inf"))
    result = torch.softmax(scores, -1)[:, None] @ values
    position.add_(1)
    return result[:, 0]


def decode_state() -> list[torch.Tensor]:
    """A query float32 [8, 64], two caches float32 [8, 1024, 64], and a position int64 [1]."""
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(*shape, generator=generator) for shape in ((8, 64), (8, 1024, 64), (8, 1024, 64)))
    return [q, keys, values, torch.tensor([500])]


def decoded(calls: int) -> torch.Tensor:
    """The result of the last of so many steps."""
    state = decode_state()
    return [decode_step(*state) for _ in range(calls)][-1]


def main(rounds: int = ROUNDS, folder: pathlib.Path = RESULTS) -> int:
    """Measures, writes, prints the table; returns 1 if our own way failed."""
    path = folder / "xla.json"
    path.unlink(missing_ok=True)
    store = Store(path, slashes=1)
    machine = {
        "versions": {**versions(), "torch_xla": version("torch_xla") or ""},
        "cores": os.cpu_count(),
        "rounds": rounds,
    }
    for case in cases():
        for way, entry in measure(case, rounds).items():
            store.put(f"{case.name}/{way}", {**entry, **machine, "load": os.getloadavg()[0]})
    text = xla_report.document(store.entries)
    (folder / "xla.md").write_text(text)
    Console(width=200, soft_wrap=True).print(text, markup=False, highlight=False)
    return int(any("error" in entry for key, entry in store.entries.items() if key.endswith("/helion_tpu")))


if __name__ == "__main__":
    sys.exit(main())
