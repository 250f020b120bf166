"""Compile time of every model of the suite, ours and Inductor's, on this machine in one run.

The time is that of the first call in inference mode: Dynamo, AOTAutograd, the backend and one execution. Every
measurement has a process of its own, forked from one that has imported torch, JAX and transformers but computed
nothing, and cold caches: Dynamo's, AOTAutograd's, Inductor's (an empty cache folder) and JAX's (which has none on
disk by default). The two sides take turns, and the models do within a round, so that a change of the machine's load
hits all of them alike. Inductor runs with its own defaults: its C++ compiler, its pool of compile workers. CPU seconds
are those of the process and of the children it waited for; of Inductor's pool they lack a part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from bench.markdown import table
from bench.store import versions
from tpu_lowering import errors

RESULTS = pathlib.Path(__file__).parent / "results"
BACKENDS = ("helion_tpu", "inductor")
SECONDS = 600.0  # for one measurement

Samples = dict[str, dict[str, list[dict[str, float]]]]
"""For each model and backend, the measurements: wall seconds, and CPU seconds with those of child processes."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One model: medians of wall and CPU seconds of both sides.

    Attributes:
        ratio: our wall time over Inductor's.
    """

    model: str
    ours: float
    inductor: float
    our_cpu: float
    inductor_cpu: float
    rounds: int

    @property
    def ratio(self) -> float:
        return self.ours / self.inductor

    @property
    def cpu_ratio(self) -> float:
        return self.our_cpu / self.inductor_cpu


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def median(measurements: Sequence[Mapping[str, float]], kind: str) -> float:
    return statistics.median(one[kind] for one in measurements)


def rows(samples: Samples) -> list[Row]:
    """A row for each model that both sides have compiled."""
    found: list[Row] = []
    for model, sides in samples.items():
        ours, theirs = (sides.get(backend, []) for backend in BACKENDS)
        if ours and theirs:
            medians = [
                statistics.median(sample[kind] for sample in side)
                for kind in ("wall", "cpu")
                for side in (ours, theirs)
            ]
            found.append(Row(model, *medians, rounds=min(len(ours), len(theirs))))
    return found


@contextlib.contextmanager
def cold_inductor() -> Iterator[None]:
    """A scope in which Inductor finds nothing that it compiled before."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        yield


def measure(name: str, backend: str) -> dict[str, float]:
    """Compiles one model, in this process, and checks its result."""
    from bench.zoo import MODELS

    torch.manual_seed(0)
    chosen = MODELS[name]
    model, inputs = chosen.build().eval(), chosen.inputs()
    with torch.inference_mode(), cold_inductor():
        expected = chosen.step(model, inputs)
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        found = torch.compile(chosen.step, backend=backend, fullgraph=True)(model, inputs)
        wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    return {"wall": wall, "cpu": cpu}


class Nursery:
    """A process that has imported everything, and forks one child for each measurement.

    Its program is a module that calls ``serve``, by default this one.
    """

    def __init__(self, module: str = "bench.model_compile_time") -> None:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_LOG_DIR": "disabled", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def measure(self, *words: str) -> dict[str, Any] | str:
        """A measurement, or what went wrong. Words say which; by default a model and a backend."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print("\t".join(words), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline() or '"the process ended"')

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(measure: Callable[..., object] = measure, seconds: float = SECONDS) -> None:
    """The nursery: reads the words of a measurement a line, forks, writes what the child says as one line of JSON.

    Args:
        measure: takes the words; what it returns can be written as JSON.
        seconds: after which a child is ended.
    """
    import jax
    import transformers  # noqa: F401

    import bench.zoo  # noqa: F401
    import tpu_lowering.backend  # noqa: F401

    assert jax.config.jax_compilation_cache_dir is None, "expected no cache on disk"
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(int(seconds))
            try:
                answer: object = measure(*line.rstrip("\n").split("\t"))
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"[:500]
            with os.fdopen(writer, "w") as stream:
                json.dump(answer, stream)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            text = stream.read() or '"the process ended"'
        os.waitpid(child, 0)
        os.write(answers, (text + "\n").encode())


def require_compiler() -> str:
    """The C++ compiler that Inductor uses on a CPU.

    Raises:
        TpuLoweringError: TL105 if there is none: then there is nothing to compare with.
    """
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise errors.refuse(
            "TL105", "g++", "expected a C++ compiler (Inductor generates C++ on a CPU), got none",
            "install g++, or name a compiler in CXX",
        )  # fmt: skip
    return found


def document(samples: Samples, failures: Mapping[str, str], about: str) -> str:
    """The table, and what the figures are, as Markdown."""
    found = rows(samples)
    cells = [
        [
            row.model, f"{row.ours:.2f}", f"{row.inductor:.2f}", f"{row.ratio:.2f}",
            f"{row.our_cpu:.2f}", f"{row.inductor_cpu:.2f}", f"{row.cpu_ratio:.2f}", str(row.rounds),
        ]
        for row in found
    ]  # fmt: skip
    headers = ["model", "ours, s", "Inductor, s", "ratio", "ours, CPU s", "Inductor, CPU s", "CPU ratio", "rounds"]
    lines = ["# Compile time of the model suite", "", " ".join((__doc__ or "").split()), "", about, ""]
    lines.append(table(headers, cells))
    if found:
        lines.append(
            f"Geometric mean of the ratios over {len(found)} models: {geometric_mean([r.ratio for r in found]):.2f} "
            f"(CPU seconds: {geometric_mean([r.cpu_ratio for r in found]):.2f})."
        )
    lines += [f"- {name}: {text}" for name, text in failures.items()]
    return "\n".join(lines) + "\n"


def main(rounds: int = 3, only: Sequence[str] = (), folder: pathlib.Path = RESULTS) -> int:
    """Measures, and writes ``model_compile_time.json`` and ``.md`` after every round."""
    from bench.zoo import MODELS

    about = f"{os.cpu_count()} cores, {require_compiler()}, " + ", ".join(f"{k} {v}" for k, v in versions().items())
    console = Console()
    samples: Samples = {name: {backend: [] for backend in BACKENDS} for name in only or MODELS}
    failures: dict[str, str] = {}
    nursery = Nursery()
    for number in range(rounds):
        for name, sides in samples.items():
            for backend in BACKENDS if number % 2 == 0 else reversed(BACKENDS):
                answer = nursery.measure(name, backend)
                if isinstance(answer, str):
                    failures[f"{name}, {backend}"] = answer
                else:
                    sides[backend].append(answer)
            said = {backend: round(side[-1]["wall"], 2) for backend, side in sides.items() if side}
            console.print(f"round {number + 1}, {name}: {said}", markup=False)
            _write(folder, samples, failures, about)
    nursery.stop()
    console.print(document(samples, failures, about), markup=False)
    return 1 if failures else 0


def _write(folder: pathlib.Path, samples: Samples, failures: Mapping[str, str], about: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "samples": samples, "failures": dict(failures)}
    (folder / "model_compile_time.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "model_compile_time.md").write_text(document(samples, failures, about))


if __name__ == "__main__":
    serve()
