"""``python -m tests.examples FILE ...``: runs each file by itself, all in one process, and prints what came out as JSON.

Each file is a program of its own: its names and its settings of Dynamo end with it. What comes out are lines that it
prints, warnings, log records and the error that it ends with.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pathlib
import runpy
import shlex
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping

ROOT = pathlib.Path(__file__).parent.parent


def run_all(
    files: Iterable[pathlib.Path], surroundings: Mapping[str, str], timeout: float
) -> dict[str, dict[str, str]]:
    """Runs files in one child process.

    Returns:
        For each file, by its whole path: what was "printed", what was "said" by warnings and logs, and the "error".
    """
    names = [str(file) for file in files]
    child = subprocess.run(
        [sys.executable, "-m", "tests.examples", *names],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=dict(surroundings),
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def run(file: pathlib.Path) -> dict[str, str]:
    """Runs a Python file, or a command of this package in a ``.sh`` file."""
    from tpu_lowering.__main__ import main

    printed, said, error = io.StringIO(), io.StringIO(), ""
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("always")
            if file.suffix == ".sh":
                main(shlex.split(file.read_text())[3:])
            else:
                runpy.run_path(str(file), run_name="__main__")
    except Exception:
        error = traceback.format_exc()
    finally:
        logging.getLogger().removeHandler(handler)
    return {"printed": printed.getvalue(), "said": said.getvalue(), "error": error}


def _main(files: list[str]) -> None:
    import os

    import torch
    import torch._inductor.config

    found: dict[str, dict[str, str]] = {}
    for file in map(pathlib.Path, files):
        torch.compiler.reset()
        os.chdir(file.parent)
        found[str(file)] = run(file)
        torch._inductor.config.post_grad_custom_pre_pass = None
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
