"""A process that runs tasks: one JSON line in for each, one JSON line out. ``Worker`` is the other end.

A process of its own, so that an operator that aborts or hangs costs its entry only, and so that XLA can be
told to compile quickly without changing the process that asks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tests.global_state import changed, settle, state
from tests.opinfo.entry import run_entry
from tests.opinfo.tasks import DATABASES, Result, Task, entries

ROOT = pathlib.Path(__file__).parent.parent.parent
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
LIMIT = 3600.0  # seconds of processor time for one entry: max_pool2d has 1,440 samples
PATIENCE = 6.0  # seconds to wait for each second of that, on a busy machine


class Worker:
    """The other end of a worker process, which is started when it is needed."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self.process: subprocess.Popen[str] | None = None

    def run(self, task: Task) -> Result:
        """Runs a task. A process that dies or takes too long gives a result with code "crash" or "timeout"."""
        process = self._started()
        assert process.stdin and process.stdout
        print(json.dumps([self.limit, dataclasses.asdict(task)]), file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], self.limit * PATIENCE)
        line = process.stdout.readline() if ready else ""
        if line:
            return Result(**json.loads(line))
        self.close()
        late = not ready or process.returncode == -signal.SIGXCPU
        code, message = ("timeout", f"{self.limit:.0f} s") if late else ("crash", f"exit code {process.returncode}")
        return Result(task.database, task.name, task.column, code=code, message=message)

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()
            environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.opinfo.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                cwd=ROOT,
            )
        return self.process

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            assert self.process.stdin
            self.process.stdin.close()
            try:
                self.process.wait(1)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def with_state(result: Result, before: Mapping[str, Any]) -> Result:
    """A result that fails with code "global" if the process's global state is no longer what it was."""
    left = [name for name in changed(before, state()) if name != "random"]  # samples come from the global generator
    return dataclasses.replace(result, code="global", message=f"changed: {', '.join(left)}") if left else result


def limit_processor_time(seconds: float) -> None:
    """Has the system end this process after so many further seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, most))


def main() -> None:
    """Answers tasks from standard input until it ends."""
    import jax
    import torch
    from torch.testing._internal import common_methods_invocations

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    databases = {name: entries(name) for name in DATABASES}
    # Entries of random operators seed the generator inside the operator, which Dynamo cannot trace; we seed outside.
    common_methods_invocations.wrapper_set_seed = call
    settle()
    before = state()
    for line in sys.stdin:
        limit, fields = json.loads(line)
        limit_processor_time(limit)
        task = Task(**fields)
        try:
            result = run_entry(task, databases[task.database][task.name])
        except Exception as error:  # in the harness itself or in torch's sample function
            traceback.print_exc()
            result = Result(task.database, task.name, task.column, code="harness", message=repr(error)[:300])
        print(json.dumps(dataclasses.asdict(with_state(result, before))), file=answers, flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
