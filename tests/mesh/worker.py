"""One rank of several: runs cases of ``tests.mesh.cases`` and prints what each gives, a line each."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import sys
import time
import traceback
import warnings

import torch
import torch.distributed as dist


def outlive_the_others(seconds: float = 10) -> None:
    """The first rank holds torch's store, from which the others hear what went wrong; they look every two seconds."""
    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(RuntimeError):  # of ranks that are gone nothing is heard
        store.set(f"tests/done/{dist.get_rank()}", "")
        if dist.get_rank() == 0:
            others = [f"tests/done/{rank}" for rank in range(1, dist.get_world_size())]
            end = time.monotonic() + seconds
            while not store.check(others) and time.monotonic() < end:
                time.sleep(0.05)


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(100, file=sys.stdout)
    torch.set_num_threads(1)
    seconds = datetime.timedelta(seconds=float(os.environ.get("TESTS_GROUP_SECONDS", "120")))
    dist.init_process_group("gloo", timeout=seconds)
    from tests.mesh import cases, faults, program_cases

    all_live = True
    for name in names:
        torch._dynamo.reset()
        try:
            case = next(getattr(part, name) for part in (cases, program_cases, faults) if hasattr(part, name))
            said = case(dist.get_rank(), dist.get_world_size())
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-3000:]}
        print(f"\nRESULT {json.dumps({name: said})}", flush=True)
        all_live = all_live and "[TL704]" not in json.dumps(said)
    if all_live:
        outlive_the_others()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
