"""Compiles many different small kernels in one process, drops each, and says how the process's memory grows.

``python -m tests.memory_growth HOW COUNT [BOUND]`` prints one line of JSON: see ``Growth``. With a bound no cache of the
session has more entries, so that few kernels show what is never dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import pathlib
import resource
import sys
from collections.abc import Callable, Mapping, Set

import jax
import jax.numpy as jnp
import numpy as np
import torch

import tpu_lowering
from tpu_lowering.session import SESSION, Cache

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Growth:
    """What a run showed.

    Attributes:
        how: a key of ``KERNELS``.
        count: how many kernels were compiled.
        half, end: MiB of resident memory after half of them, and at the end.
        objects: for the types of which there is at least one more object for each two kernels of the second half: how
            many more.
        containers: for containers of the package's modules, and of objects there, that have more entries at the end than
            after half: how many more.
        caches: entries of each cache of the session.
    """

    how: str
    count: int
    half: float
    end: float
    objects: dict[str, int]
    containers: dict[str, int]
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


def mixed(number: int) -> None:
    (operator, generated)[number % 2](number)


KERNELS: dict[str, Callable[[int], None]] = {
    "operator": operator,
    "generated": generated,
    "mixed": mixed,
    "plain": plain,
}


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


def containers() -> dict[str, int]:
    """Entries of each container that a module of the package has a name for, or an object that one has a name for."""
    found: dict[str, int] = {}
    for place, module in list(sys.modules.items()):
        for name, value in list(vars(module).items()) if place.startswith("tpu_lowering.") else ():
            is_ours = type(value).__module__.startswith("tpu_lowering.") and not isinstance(value, Cache)
            inside = vars(value) if is_ours and hasattr(value, "__dict__") else {}
            for part, one in {"": value, **inside}.items():
                if isinstance(one, (Mapping, Set, list, collections.deque)):
                    found[f"{place}.{name}{'.' + part if part else ''}"] = len(one)
    return found


def more(after: dict[str, int], before: dict[str, int], least: int) -> dict[str, int]:
    found = {name: count - before.get(name, 0) for name, count in after.items()}
    return dict(sorted(((name, count) for name, count in found.items() if count >= least), key=lambda one: -one[1]))


def measure(how: str, count: int, bound: int | None = None) -> Growth:
    run = KERNELS[how]
    run(0)  # imports what is needed
    for cache in SESSION.caches.values():
        cache.bound = bound or cache.bound

    def compile_all(numbers: range) -> None:
        for number in numbers:
            run(number)
            if number % 100 == 0:
                print(f"{how} {number}: {resident():.1f} MiB", file=sys.stderr, flush=True)

    compile_all(range(1, count // 2))
    half, before = resident(), (objects(), containers())
    compile_all(range(count // 2, count))
    end, after = resident(), (objects(), containers())
    kept = {name: len(cache) for name, cache in SESSION.caches.items() if len(cache)}
    return Growth(how, count, half, end, more(after[0], before[0], count // 4), more(after[1], before[1], 1), kept)


def main(arguments: list[str]) -> None:
    print(json.dumps(dataclasses.asdict(measure(arguments[0], *map(int, arguments[1:])))))


if __name__ == "__main__":
    main(sys.argv[1:])
