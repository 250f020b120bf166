"""Processes for tests, forked from one that has imported what they need; see ``tests.processes.fork_server``."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


class Child:
    """A process; ``communicate``, ``kill`` and ``returncode`` are those of ``subprocess.Popen``."""

    def __init__(self, server: Server, pid: int, files: tuple[pathlib.Path, pathlib.Path]) -> None:
        self.server, self.pid, self.files = server, pid, files
        self.returncode: int | None = None

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it printed, and its errors, when it has ended."""
        if self.returncode is None:
            self.returncode = self.server.ask(pid=self.pid, kill=False, seconds=timeout)
        output, errors = (file.read_text() for file in self.files)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self.pid), timeout, output, errors)
        return output, errors

    def kill(self) -> None:
        if self.returncode is None:
            self.returncode = self.server.ask(pid=self.pid, kill=True, seconds=60)


class Server:
    """A process that forks others; it ends when this one does."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.numbers = itertools.count()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.fork_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "TPU_LOG_DIR": "disabled", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(self.end)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, *command: str, folder: pathlib.Path = ROOT, **variables: str) -> Child:
        """A process as of ``python COMMAND``, with these variables added to the environment."""
        own = pathlib.Path(self.folder.name) / str(next(self.numbers))
        files = own.with_suffix(".output"), own.with_suffix(".errors")
        output, errors = map(str, files)
        known = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment = {**known, "JAX_PLATFORMS": "cpu", "TPU_LOG_DIR": "disabled", **variables}
        pid = self.ask(command=list(command), variables=environment, folder=str(folder), output=output, errors=errors)
        return Child(self, pid, files)


@functools.cache
def server(name: str = "first") -> Server:
    """The one of a name: processes of two servers have nothing in common, not even how Python hashes text."""
    return Server()


def run(*command: str, name: str = "first", seconds: float = 300, **given: Any) -> str:
    """What a process of a server prints that ends well."""
    child = server(name).start(*command, **given)
    output, errors = child.communicate(seconds)
    assert child.returncode == 0, f"{output[-1000:]}\n{errors[-5000:]}"
    return output
