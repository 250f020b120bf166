"""Scripts in processes of their own, with a time limit: one that hangs is a failure."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

SECONDS = 240


def run(script: str, folder: pathlib.Path, **variables: str) -> str:
    """What a script prints, in a process that finds this package and stops after ``SECONDS``."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    root = str(pathlib.Path(__file__).parents[2])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
        "GLOO_SOCKET_IFNAME": "lo",
        **variables,
    }
    process = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    assert process.returncode == 0, f"{process.stdout[-1000:]}\n{process.stderr[-3000:]}"
    return process.stdout
