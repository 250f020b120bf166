"""Compiles many different small kernels in one process, drops each, and says how the process's memory grows.

``python -m tests.memory_growth HOW COUNT`` prints one line of JSON: see ``Growth``.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import tpu_lowering
from tpu_lowering.session import SESSION

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Growth:
    """What a run showed.

    Attributes:
        how: a key of ``KERNELS``.
        count: how many kernels were compiled.
        half, end: MiB of resident memory after half of them, and at the end.
        objects: for the types of which there are more objects at the end than after half: how many more.
        caches: entries of each cache of the session.
    """

    how: str
    count: int
    half: float
    end: float
    objects: dict[str, int]
    caches: dict[str, int]

    @property
    def mib(self) -> float:
        return self.end - self.half


@tpu_lowering.kernel_op("memory_growth::scaled")
def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return jnp.tanh(x) * by


def compiled(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """Runs a function that nothing holds afterwards."""
    result = torch.compile(function, backend="helion_tpu", options={"fuse": "always"}, fullgraph=True)(*arguments)
    torch._dynamo.reset()
    return result


def operator(number: int) -> None:
    """A JAX function with another number each time, at one of eight shapes."""
    x, by = torch.ones(8, 128 * (1 + number % 8)), 1 + number / 8192
    result = compiled(lambda x: scaled(x, by), x)
    torch.testing.assert_close(result, torch.tanh(x) * by)


def generated(number: int) -> None:
    """A kernel that is generated for a softmax, scaled by another number each time."""
    x, by = torch.ones(16, 128 * (1 + number % 8)), 1 + number / 8192
    result = compiled(lambda x: torch.softmax(x * by, -1), x)
    torch.testing.assert_close(result, torch.softmax(x * by, -1))


def plain(number: int) -> None:
    """What ``operator`` computes, through ``jax.jit`` alone."""
    x, by = np.ones((8, 128 * (1 + number % 8)), np.float32), 1 + number / 8192
    result = jax.jit(lambda x: jnp.tanh(x) * by)(x)
    np.testing.assert_allclose(np.asarray(result), np.tanh(x) * by, rtol=1e-5)


KERNELS: dict[str, Callable[[int], None]] = {"operator": operator, "generated": generated, "plain": plain}


def resident() -> float:
    """MiB of memory that the process has, without what Python could free."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def objects() -> dict[str, int]:
    found: dict[str, int] = {}
    for one in gc.get_objects():
        name = f"{type(one).__module__}.{type(one).__qualname__}"
        found[name] = found.get(name, 0) + 1
    return found


def measure(how: str, count: int) -> Growth:
    run = KERNELS[how]
    for number in range(count // 2):
        run(number)
    half, before = resident(), objects()
    for number in range(count // 2, count):
        run(number)
    end, after = resident(), objects()
    more = {name: found - before.get(name, 0) for name, found in after.items() if found > before.get(name, 0) + 50}
    caches = {name: len(cache) for name, cache in SESSION.caches.items() if len(cache)}
    return Growth(how, count, half, end, dict(sorted(more.items(), key=lambda one: -one[1])[:20]), caches)


def main(arguments: list[str]) -> Any:
    print(json.dumps(dataclasses.asdict(measure(arguments[0], int(arguments[1])))))


if __name__ == "__main__":
    main(sys.argv[1:])
