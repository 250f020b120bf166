"""The tests of ``eight_devices`` in a process with eight CPU devices: JAX fixes their number when it starts."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[3]
FOLDER = pathlib.Path(__file__).parent / "eight_devices"
FLAG = "--xla_force_host_platform_device_count=8"


def test_on_eight_devices() -> None:
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAG}", "JAX_PLATFORMS": "cpu"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
