"""Kernels that are compiled and dropped leave no memory behind, but for what the session keeps, which has a bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.memory_growth import Growth

MOST_MIB = 50
"""By how much resident memory may grow over the last 1,000 kernels."""

OF_KERNELS = (
    "tpu_lowering.",
    "jax._src.core.Jaxpr",
    "jax._src.core.ClosedJaxpr",
    "torch.fx.graph",
    "torch.fx.node",
    "jax._src.stages.",
)
"""How the types begin of which each compiled kernel has some."""

everything = pytest.mark.skipif(
    os.environ.get("TPU_LOWERING_MEMORY") != "all", reason="takes a quarter of an hour: make test-memory"
)


def grown(*arguments: str) -> Growth:
    command = [sys.executable, "-m", "tests.memory_growth", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Growth(**json.loads(done.stdout.splitlines()[-1]))


def test_what_is_dropped_is_gone() -> None:
    """Few kernels, and four entries a cache: what holds one beyond its entry shows."""
    found = grown("mixed", "24", "4")
    assert max(found.caches.values()) <= 4
    assert {name: count for name, count in found.objects.items() if name.startswith(OF_KERNELS)} == {}
    assert found.containers == {}


@everything
@pytest.mark.parametrize("how", ["operator", "generated"])
def test_memory_stays_as_it_is_after_a_thousand_kernels(how: str) -> None:
    found, plain = grown(how, "2000"), grown("plain", "2000")
    print(f"{how}: {found.mib:.1f} MiB over the last 1,000 kernels; plain JAX: {plain.mib:.1f} MiB")
    assert found.mib < MOST_MIB
