"""One rank of several: runs cases of ``tests.mesh.cases`` and prints what each gives, a line each."""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import sys
import traceback
import warnings

import torch
import torch.distributed as dist


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(100, file=sys.stdout)
    torch.set_num_threads(1)
    seconds = datetime.timedelta(seconds=float(os.environ.get("TESTS_GROUP_SECONDS", "120")))
    dist.init_process_group("gloo", timeout=seconds)
    from tests.mesh import cases, faults, program_cases

    for name in names:
        torch._dynamo.reset()
        try:
            case = next(getattr(part, name) for part in (cases, program_cases, faults) if hasattr(part, name))
            said = case(dist.get_rank(), dist.get_world_size())
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-3000:]}
        print(f"\nRESULT {json.dumps({name: said})}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
