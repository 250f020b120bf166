"""How much of a process's first result a second process has for nothing: a cold cache folder, then the same one warm.

Each measurement is two new processes. Inductor with its own cache folder is measured beside ours, and both also with
torch's precompilation, which spares a second process Dynamo's work, too.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from bench.cpu.first_result import KERNEL, SMALL, TRAINING
from bench.cpu.timing import described, entry

CASES = (SMALL, KERNEL, "llama", f"llama{TRAINING}")
BACKENDS = {"ours": "helion_tpu", "inductor": "inductor"}
PRECOMPILED = ", precompiled"
VARIABLE = "TPU_LOWERING_CACHE_DIR"
PRECOMPILE = "TORCH_CACHING_PRECOMPILE"
SECONDS = 600.0  # for one process


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The entry of one case.

    Its sides are ``<side> cold`` and ``<side> warm``, after imports, and ``<side> cold, all`` and ``<side> warm, all``,
    from before them; ``<side>, precompiled cold`` and so on are with torch's precompilation.
    """
    samples: dict[str, list[float]] = {}
    errors: list[str] = []
    for _ in range(rounds):
        for who, precompiled in itertools.product(BACKENDS, (False, True)):
            side = who + PRECOMPILED * precompiled
            with tempfile.TemporaryDirectory() as folder:
                try:
                    pair = {state: first_result(name, BACKENDS[who], folder, precompiled) for state in ("cold", "warm")}
                except subprocess.CalledProcessError as error:
                    errors.append(f"{side}: {(error.stderr.strip() or str(error)).splitlines()[-1][:300]}")
                    continue
                except (subprocess.TimeoutExpired, ValueError) as error:
                    errors.append(f"{side}: {described(error)}")
                    continue
            for state, found in pair.items():
                samples.setdefault(f"{side} {state}", []).append(found["first"])
                samples.setdefault(f"{side} {state}, all", []).append(found["total"])
    failed = "".join(f"; a round failed: {text}" for text in errors)
    note = f"by {VARIABLE}; precompiled: and {PRECOMPILE}{failed}"
    return {"sides": {side: entry(values) for side, values in samples.items()}, "note": note}


def first_result(name: str, backend: str, folder: str, precompiled: bool) -> dict[str, float]:
    """What a new process that caches in a folder says of itself.

    Raises:
        subprocess.SubprocessError: it failed, or took longer than ``SECONDS``.
    """
    environment = {
        **os.environ,
        VARIABLE: os.path.join(folder, "ours"),
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"),
        PRECOMPILE: str(int(precompiled)),
        "JAX_PLATFORMS": "cpu",
        "TPU_LOG_DIR": "disabled",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "bench.cpu.first_result", name, backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=True)
    return json.loads(done.stdout.splitlines()[-1])
