"""A process that has imported torch, JAX and Helion, and forks a process for each that a test starts.

To import them and to compile for the first time takes six seconds of a processor; a fork takes none. JAX has not run
in the server: what is forked from it is a process of its own. ``tests.processes.forked`` speaks to it, a line of JSON
each way. Of what libraries read from the environment when they are imported, ``READ`` alone is read again.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from typing import Any, NoReturn

IMPORTED = ("helion.language", "jax.experimental.pallas.tpu", "torch.distributed.tensor", "tpu_lowering.backend")

READ = {"TORCH_CACHING_PRECOMPILE": "caching_precompile"}
"""Switches of Dynamo, by their variables."""


def get_ready() -> None:
    """Imports what a compilation imports: one with torch's own backend, of which nothing is kept. None with gradients:
    torch built for CUDA starts threads for these, and no fork may follow."""
    for name in IMPORTED:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    import torch
    from torch._dynamo.utils import counters

    torch.compile(lambda x: x + 1, backend="aot_eager")(torch.ones(2))
    torch._dynamo.reset()
    counters.clear()
    gc.collect()
    gc.freeze()


def source_of(command: list[str], module: types.ModuleType) -> Any:
    """The code of ``-c PROGRAM``, ``-m MODULE`` or ``FILE``, as Python itself would find it."""
    if command[0] == "-c":
        return compile(command[1], "<string>", "exec")
    path = command[0]
    if command[0] == "-m":
        spec = importlib.util.find_spec(command[1])
        is_package = spec is not None and spec.submodule_search_locations is not None
        module.__spec__ = importlib.util.find_spec(f"{command[1]}.__main__") if is_package else spec
        assert module.__spec__ is not None and module.__spec__.origin is not None, command
        path = module.__spec__.origin
    else:
        sys.path[0] = str(pathlib.Path(path).parent)
    module.__file__ = path
    return compile(pathlib.Path(path).read_text(), path, "exec")


def become(command: list[str], variables: dict[str, str], folder: str, output: str, errors: str) -> NoReturn:
    """What a new process runs. Its ``__main__`` is the program, as long as it lives."""
    for number, (name, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (output, os.O_WRONLY | os.O_CREAT), (errors, os.O_WRONLY | os.O_CREAT)]
    ):
        file = os.open(name, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    for variable, switch in READ.items():
        setattr(sys.modules["torch._dynamo.config"], switch, variables.get(variable) == "1")
    os.chdir(folder)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = command[1:] if command[0].startswith("-") else command
    try:
        exec(source_of(command, module), vars(module))
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as multiprocessing ends what it forks: to free all that was imported takes a second


def status(pid: int, seconds: float) -> int | None:
    """The exit status of a process that ends in time; negative, as subprocess has it, for a signal."""
    end = time.monotonic() + seconds
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            return None
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def main() -> int:
    get_ready()
    with open(os.dup(1), "w") as answers:
        for line in sys.stdin:
            request = json.loads(line)
            if "pid" in request:
                if request["kill"]:
                    os.kill(request["pid"], signal.SIGKILL)
                answer = status(request["pid"], request["seconds"])
            else:
                with warnings.catch_warnings(action="ignore"):  # JAX's of processes with threads
                    answer = os.fork()
                if answer == 0:
                    answers.close()
                    become(**request)
            print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
