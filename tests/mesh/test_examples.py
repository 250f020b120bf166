"""The examples: losses fall, and a run goes on. ``TPU_LOWERING_MESH=all`` runs all of them, on four processes."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.mesh import ranks

ROOT = pathlib.Path(__file__).parent.parent.parent
COUNT = 4 if ranks.ALL else 2


def losses(name: str, *arguments: str, steps: int = 3) -> list[float]:
    """The loss of each step that an example prints."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(COUNT), f"examples/{name}.py"]
    done = subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**os.environ, **ranks.SURROUNDINGS, "STEPS": str(steps), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]


NAMES = ["tensor_parallel_llama", "expert_parallel", "fsdp_training"] if ranks.ALL else ["expert_parallel"]


@pytest.mark.parametrize("name", NAMES)
def test_example(name: str, tmp_path: pathlib.Path) -> None:
    if name == "fsdp_training":
        check_resuming(tmp_path)
        return
    first, *_, last = losses(name)
    assert last < first


def check_resuming(folder: pathlib.Path) -> None:
    """Six steps in one run, and in two with a checkpoint between them."""
    apart = [losses("fsdp_training", str(folder / "apart")) for _ in range(2)]
    assert losses("fsdp_training", str(folder / "at once"), steps=6) == [*apart[0], *apart[1]]
