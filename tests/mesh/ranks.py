"""Starts processes that are ranks of one group, and collects what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from tests.processes.forked import Child, server
from tpu_lowering.runtime.peers import free_port

ALL = os.environ.get("TPU_LOWERING_MESH") == "all"
"""Whether every case is run on every number of ranks."""

SURROUNDINGS = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "TPU_LOG_DIR": "disabled", "MASTER_ADDR": "127.0.0.1"}


def start(names: Sequence[str], count: int, **env: str) -> list[Child]:
    """One process a rank, each with the same cases."""
    world = {**SURROUNDINGS, **env, "WORLD_SIZE": str(count), "MASTER_PORT": str(free_port())}
    command = ("-m", "tests.mesh.worker", *names)
    return [server().start(*command, **world, RANK=str(rank)) for rank in range(count)]


def collect(processes: Sequence[Child], seconds: float) -> list[dict[str, Any]]:
    """What each rank said, by case; "exit" is its exit status, "output" all that it printed."""
    found: list[dict[str, Any]] = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=seconds)
            lines = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
            said: dict[str, Any] = {"exit": process.returncode, "output": output + errors}
            for line in lines:
                said |= json.loads(line)
            found.append(said)
    finally:
        for process in processes:
            process.kill()
    return found


def run(names: Sequence[str], count: int, seconds: float = 300, **env: str) -> list[dict[str, Any]]:
    """Runs cases on some ranks; by rank and case what each gave."""
    return collect(start(names, count, **env), seconds)
