"""Small JAX programs that libtpu compiles to show what XLA decides by itself: ``python -m tests.fuse.xla.probes FILE``.

One process compiles them all, and writes the HBM bytes that each moves to a JSON file.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import hlo
from tpu_lowering.runtime.aot.traffic import traffic_by_operands

CHIP = "tpu7x"
Probe = tuple[Callable[..., Any], Sequence[tuple[int, ...]]]
"""A function of bfloat16 arrays, and their shapes."""


def scores(heads: int) -> Probe:
    """Attention with scores of 2 MiB a head."""

    def attend(q: Any, k: Any, v: Any) -> Any:
        weights = jax.nn.softmax(jnp.einsum("hqd,hkd->hqk", q, k), axis=-1)
        return jnp.einsum("hqk,hkd->hqd", weights, v)

    return attend, [(heads, 1024, 128)] * 3


def product(mebibytes: int) -> Probe:
    """A product of that size, whose rows are normalised: the mean, and what is computed of it."""

    def norm(x: Any, w: Any) -> Any:
        y = x @ w
        return y * jax.lax.rsqrt(jnp.mean(jnp.square(y.astype(jnp.float32)), -1, keepdims=True)).astype(y.dtype)

    return norm, [(mebibytes * 512, 128), (128, 1024)]


def rows(mebibytes: int) -> Probe:
    """Rows of that size that the program computes, normalised between two products."""

    def norm(x: Any, w: Any, r: Any, v: Any) -> Any:
        y = x @ w + r
        y = jax.nn.standardize(y, axis=-1)
        return y @ v

    return norm, [(mebibytes * 512, 128), (128, 1024), (1024,), (1024, 128)]


def row(length: int) -> Probe:
    """A softmax of rows of that length, 32 MiB in all."""
    return lambda x: jax.nn.softmax(x, axis=-1), [(8, 2 * 2**20 // length, length)]


def rotation(_: int) -> Probe:
    """Rows that are rotated and added to themselves, 64 MiB."""
    return lambda x: x + jnp.roll(x, 3, axis=-1), [(8192, 4096)]


FAMILIES: dict[str, Callable[[int], Probe]] = {one.__name__: one for one in (scores, product, rows, row, rotation)}


def optimised(dumped: pathlib.Path) -> str:
    """The optimised program that XLA dumped, which is then removed: JAX cannot print all of them."""
    files = sorted(dumped.glob("*.after_optimizations.txt"), key=lambda file: file.stat().st_size)
    text = files[-1].read_text()
    for file in files:
        file.unlink()
    return text


def main(wanted: dict[str, list[int]], path: pathlib.Path) -> None:
    """Compiles probes by family and size, and writes the HBM bytes that XLA's program moves, and the least: arguments
    and results once."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=chips.find(CHIP).topology)
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    dumped, found = path.parent / "dump", dict[str, Any]()
    for family, sizes in wanted.items():
        for size in sizes:
            function, shapes = FAMILIES[family](size)
            specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
            compiled = jax.jit(function).trace(*specs).lower(lowering_platforms=("tpu",)).compile()
            text, memory = optimised(dumped), compiled.memory_analysis()
            traffic = traffic_by_operands(hlo.Module.of(text))
            least = memory.argument_size_in_bytes + memory.output_size_in_bytes
            found[f"{family} {size}"] = [sum(one.total for one in traffic.values()), least]
            path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
