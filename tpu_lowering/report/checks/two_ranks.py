"""Two processes that run one program together: what the doctor tries."""

from __future__ import annotations

import os
import subprocess
import sys

from tpu_lowering.runtime import peers

SUM = (
    "import torch, torch.distributed as dist; from torch.distributed import _functional_collectives as f; "
    "dist.init_process_group('gloo'); "
    "g = torch.compile(lambda x: f.all_reduce(x, 'sum', dist.group.WORLD), backend='helion_tpu'); "
    "assert torch.equal(g(torch.ones(4)), torch.full((4,), 2.0)); dist.destroy_process_group()"
)


def check(seconds: float = 240) -> None:
    """Adds up a tensor over two processes on this machine.

    Raises:
        RuntimeError: it did not come to that, with the last line of what a process said.
    """
    known = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(peers.free_port()), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SUM], env={**known, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=seconds)
            if process.returncode:
                raise RuntimeError((said.strip().splitlines() or ["no word"])[-1])
    finally:
        for process in started:
            process.kill()
