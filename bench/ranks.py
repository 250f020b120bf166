"""Weak scaling of a step's own overhead: ``python -m bench.ranks`` starts 1, 2 and 4 processes on this machine.

A step is forward and backward of a stack of layers whose parameters each rank holds in parts; every rank has as many
rows, whatever their number. What a step takes outside of XLA is what this package adds: arguments, results, lining up
with the other ranks. With more ranks than cores all of it shares the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

WIDTH, LAYERS, ROWS = 256, 8, 64


def worker(steps: int) -> None:
    """One rank: prints what a step takes, in seconds."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh

    from tests.mesh import models
    from tpu_lowering import compat
    from tpu_lowering.runtime import cpu, peers

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    inside = {"xla": 0.0, "line up": 0.0}

    def timed(name: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                inside[name] += time.perf_counter() - began

        return call

    compat.DirectCall.__call__ = timed("xla", compat.DirectCall.__call__)  # type: ignore[method-assign]
    cpu._waited = timed("xla", cpu._waited)
    peers.Peers._meet = timed("line up", peers.Peers._meet)  # type: ignore[method-assign]
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    models.simple_fsdp(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    compiled = torch.compile(model, backend="helion_tpu", fullgraph=True)
    x = torch.randn(ROWS, WIDTH)
    totals: list[dict[str, float]] = []
    for _ in range(steps + 3):
        inside |= {"xla": 0.0, "line up": 0.0}
        dist.barrier()
        began = time.perf_counter()
        compiled(x).square().mean().backward()
        total = time.perf_counter() - began
        totals.append({"step": total, **inside, "outside": total - inside["xla"] - inside["line up"]})
        model.zero_grad()
    kept = totals[3:]
    print("FIGURES", json.dumps({name: statistics.median(one[name] for one in kept) for name in kept[0]}), flush=True)
    dist.destroy_process_group()


def measure(count: int, steps: int) -> dict[str, float]:
    """Medians over steps and ranks, in milliseconds."""
    from tpu_lowering.runtime.peers import free_port

    port = free_port()
    known = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-m", "bench.ranks", "--worker", "--steps", str(steps)]
    started = [
        subprocess.Popen(
            command, env={**known, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for rank in range(count)
    ]
    outputs = [process.communicate()[0] for process in started]
    said = [
        json.loads(line.removeprefix("FIGURES ")) for out in outputs for line in out.splitlines() if "FIGURES" in line
    ]
    if len(said) != count:
        raise SystemExit(f"expected figures of {count} ranks, got {len(said)}")
    return {name: 1e3 * statistics.median(one[name] for one in said) for name in said[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    if given.worker:
        worker(given.steps)
        return
    first = None
    print(
        "| ranks | step, ms | in XLA, ms | lining up, ms | outside, ms | outside, of one rank's |\n|-:|-:|-:|-:|-:|-:|"
    )
    for count in given.counts:
        found = measure(count, given.steps)
        first = first or found["outside"]
        row = [f"{found[name]:.2f}" for name in ("step", "xla", "line up", "outside")]
        print(f"| {count} | {' | '.join(row)} | {found['outside'] / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
