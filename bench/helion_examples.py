"""Helion's own examples, each kernel compiled for a TPU twice: through our backend and through Helion's JAX export.

Each side runs in a child process, because settings of Helion are read once, and because a case may hang or abort.
Helion is imported with its Pallas backend as default, which the examples leave open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console
import rich.table
import torch

from bench import helion_cases, programs
from bench.helion_cases import Case
from tpu_lowering import aot
from tpu_lowering.runtime.aot.program import TpuProgram

RESULTS = pathlib.Path(__file__).parent / "results" / "helion_examples.json"
SECONDS = 200.0  # for one side of one case, with the compiler's child processes
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one side of one case.

    Attributes:
        status: "compiles" or "fails".
        code: the code of a refusal, or the name of an error's type; "" if it compiles.
        text: the message of the error; "" if it compiles.
        hbm_bytes: HBM traffic of the program; None if it fails. A kernel whose copies the compiler's schedule does
            not list whole, as in Helion's own launches with an inner pipeline, counts each operand once.
        minimum_bytes: its inputs read once and its outputs written once; None if it fails.
        fills: broadcasts, and fusions that read nothing, that write to HBM: what an allocation must not be. A fill
            that the kernel's own host code writes, and that its grid does not overwrite, is one.
        operations: opcodes of the entry operations that move bytes.
        seconds: wall time of the capture and the compilation, without starting Python.
    """

    status: str
    code: str
    text: str
    hbm_bytes: int | None
    minimum_bytes: int | None
    fills: int
    operations: tuple[str, ...]
    seconds: float

    @property
    def ratio(self) -> float | None:
        """HBM traffic over the minimum."""
        return None if not self.hbm_bytes or not self.minimum_bytes else self.hbm_bytes / self.minimum_bytes

    @staticmethod
    def of(program: TpuProgram, seconds: float) -> Outcome:
        """The outcome of a compilation."""
        exported = jax.export.deserialize(bytearray(program.artifact))
        moved = [*exported.in_avals, *exported.out_avals]
        return Outcome(
            status="compiles",
            code="",
            text="",
            hbm_bytes=program.hbm_bytes,
            minimum_bytes=sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in moved),
            fills=sum(
                o.hbm_bytes_written > 0 and o.hbm_bytes_read == 0 and o.opcode in ("broadcast", "fusion")
                for o in program.entry_operations
            ),
            operations=tuple(operation.opcode for operation in program.entry_operations),
            seconds=seconds,
        )

    @staticmethod
    def failed(code: str, text: str, seconds: float) -> Outcome:
        """The outcome of an error."""
        return Outcome("fails", code, text, None, None, 0, (), seconds)


def ours(kernel: Any, arguments: Sequence[Any], target: str) -> TpuProgram:
    """A kernel call as the whole of a compiled function."""

    def model(*given: Any) -> Any:
        return kernel(*given)

    return aot.aot_compile(model, arguments, target=target)


def export(kernel: Any, arguments: Sequence[Any], target: str) -> TpuProgram:
    """Helion's ``Kernel.jax_fn`` under ``jax.jit``."""
    kernel.settings.autotune_effort = "none"
    tensors = [value for value in arguments if isinstance(value, torch.Tensor)]

    def function(*arrays: jax.Array) -> Any:
        given = iter(arrays)
        return kernel.jax_fn(*(next(given) if isinstance(value, torch.Tensor) else value for value in arguments))

    return programs.direct(function, tensors, target)[0]


SIDES: dict[str, Callable[[Any, Sequence[Any], str], TpuProgram]] = {"ours": ours, "export": export}


def load_kernel(case: Case, examples: pathlib.Path) -> tuple[Any, tuple[Any, ...]]:
    """A kernel of the examples folder under a case's config, and its arguments."""
    helion = as_for_a_tpu()
    sys.path.insert(0, str(examples.resolve().parent))
    module = importlib.import_module(f"{examples.resolve().name}.{case.module}")
    kernel = getattr(module, case.kernel)
    if case.config is not None:
        kernel.configs = [helion.Config(**case.config)]
    return kernel, case.arguments(module)


def as_for_a_tpu() -> Any:
    """Helion, with the module that its examples take the device and the half-precision type from.

    On a TPU they are "tpu", which PyTorch knows only where a TPU is, and bfloat16; for Pallas's interpreter "cpu"
    and float16. Here they are "cpu" and bfloat16.
    """
    os.environ["HELION_PALLAS_INTERPRET"] = "1"
    helion, testing = importlib.import_module("helion"), importlib.import_module("helion._testing")
    testing.HALF_DTYPE = torch.bfloat16
    del os.environ["HELION_PALLAS_INTERPRET"]
    return helion


def measure(case: Case, side: str, examples: pathlib.Path, target: str) -> Outcome:
    """One side of one case, in this process."""
    kernel, arguments = load_kernel(case, examples)
    start = time.monotonic()
    try:
        program = SIDES[side](kernel, arguments, target)
    except Exception as error:
        error = getattr(error, "inner_exception", error)
        if side == "export" and error.__cause__ is not None:
            error = error.__cause__  # the error itself is in our words
        return Outcome.failed(**programs.refused(error), seconds=time.monotonic() - start)
    return Outcome.of(program, time.monotonic() - start)


class Worker:
    """A process for one side: takes one case at a time, and is started again after a case that ends it."""

    def __init__(self, side: str, examples: pathlib.Path, target: str, folder: pathlib.Path) -> None:
        self.command = [sys.executable, "-m", "bench.helion_examples", side, str(examples), target, str(folder)]
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def run(self, case: Case) -> Outcome:
        """One side of one case."""
        if self.process is None:
            environment = {**os.environ, "HELION_BACKEND": "pallas", "JAX_PLATFORMS": "cpu", "TPU_LOG_DIR": "disabled"}
            with (self.folder / "stderr").open("wb") as stderr:
                self.process = subprocess.Popen(
                    self.command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    start_new_session=True,
                )
        assert self.process.stdin is not None
        print(case.name, file=self.process.stdin, flush=True)
        path, start = self.folder / f"{case.name}.json", time.monotonic()
        while not path.exists():
            seconds = time.monotonic() - start
            if self.process.poll() is not None or seconds > SECONDS:
                self.stop()
                text = (self.folder / "stderr").read_text(errors="replace")[-1000:]
                return Outcome.failed("timeout" if seconds > SECONDS else "process ended", text, seconds)
            time.sleep(0.1)
        values = json.loads(path.read_text())
        return Outcome(**{**values, "operations": tuple(values["operations"])})

    def stop(self) -> None:
        """Ends the process, and the compiler that it may have started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def main(examples: pathlib.Path, target: str, only: str | None, missing: bool) -> int:
    """Compiles the cases, prints the table, and writes the results; cases that are left out keep theirs."""
    helion_cases.check_names()
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else {}
    named = [case for case in helion_cases.CASES if only is None or only in case.name]
    chosen = [case for case in named if not missing or case.name not in results]
    console = rich.console.Console()
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side in SIDES:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="helion_examples_"))
            workers[side] = Worker(side, examples, target, pathlib.Path(folder))
            stack.callback(workers[side].stop)
        for case in chosen:
            outcomes = {side: worker.run(case) for side, worker in workers.items()}
            results[case.name] = {
                side: {**dataclasses.asdict(outcome), "ratio": outcome.ratio} for side, outcome in outcomes.items()
            }
            said = ", ".join(f"{side} {outcome.code or outcome.status}" for side, outcome in outcomes.items())
            console.print(f"{case.name}: {said}")
            ordered = {known.name: results[known.name] for known in helion_cases.CASES if known.name in results}
            RESULTS.write_text(json.dumps({"target": target, "cases": ordered}, indent=1) + "\n")
    console.print(table([(case.name, results[case.name]) for case in named], target))
    return 0


def table(rows: Sequence[tuple[str, dict[str, Any]]], target: str) -> rich.table.Table:
    """Results as a table."""
    counts = {side: sum(row[side]["status"] == "compiles" for _, row in rows) for side in SIDES}
    title = f"{target}: of {len(rows)} kernels {counts['ours']} compile, {counts['export']} through Helion's export"
    shown = rich.table.Table(title=title)
    for column in ("kernel", "ours", "HBM MiB", "minimum", "ratio", "fills", "s", "Helion's export", "ratio "):
        shown.add_column(column, justify="left" if column in ("kernel", "ours", "Helion's export") else "right")
    for name, row in rows:
        mine, other = row["ours"], row["export"]
        compiled = mine["status"] == "compiles"
        shown.add_row(
            name,
            mine["code"] or mine["status"],
            f"{mine['hbm_bytes'] / MIB:.2f}" if compiled else "",
            f"{mine['minimum_bytes'] / MIB:.2f}" if compiled else "",
            ratio(mine),
            str(mine["fills"]) if compiled else "",
            f"{mine['seconds']:.1f}",
            other["code"] or other["status"],
            ratio(other),
        )
    return shown


def ratio(side: dict[str, Any]) -> str:
    """HBM traffic over the minimum, as the table shows it."""
    return "" if side["ratio"] is None else f"{side['ratio']:.2f}"


def child(side: str, examples: str, target: str, folder: str) -> None:
    """The process of one side: reads names of cases, and writes each outcome into the folder, whole."""
    cases = {case.name: case for case in helion_cases.CASES}
    for line in sys.stdin:
        name = line.strip()
        outcome = measure(cases[name], side, pathlib.Path(examples), target)
        partial = pathlib.Path(folder) / "partial"
        partial.write_text(json.dumps(dataclasses.asdict(outcome)))
        partial.rename(pathlib.Path(folder) / f"{name}.json")


if __name__ == "__main__":
    child(*sys.argv[1:])
