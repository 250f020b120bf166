"""A decoder layer's training step on a mesh, against the same by hand in JAX: ``python -m bench mesh``.

What is compared is a device's: bytes that it sends, HBM bytes that it moves, and the memory plan, as libtpu's compiler
says them. Ours is a forward and a backward; by hand it is one program. Nothing was measured on a TPU.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from jax.sharding import PartitionSpec
from rich.console import Console

import tpu_lowering
from bench.markdown import mib, ratio, table
from bench.mesh_layer import Layer, TorchLayer, jax_step
from bench.mesh_programs import by_hand, training
from bench.run import RESULTS
from bench.store import versions
from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.runtime.aot.program import TpuProgram

TARGETS = ("v5e:4x4", "tpu7x:2x2x2")
BY_HAND, PLAIN, KERNELS = "JAX, by hand", "ours, without kernels", "ours, with kernels"
FUSE = {PLAIN: "never", KERNELS: "tpu"}

Figures = dict[str, Any]


def figures(programs: Sequence[TpuProgram]) -> Figures:
    """What is compared, of one step."""
    kinds = collections.Counter(one.kind for program in programs for one in program.collectives)
    links = [program.link_bound_seconds for program in programs]
    return {
        "collectives": dict(sorted(kinds.items())),
        "sent_bytes": sum(program.sent_bytes for program in programs),
        "hbm_bytes": sum(program.hbm_bytes for program in programs),
        "peak_bytes": max(program.peak_bytes for program in programs),
        "kernels": sum(
            operation.opcode.endswith("tpu_custom_call") for p in programs for operation in p.entry_operations
        ),
        "overlapped": sum(bool(one.overlapped) for program in programs for one in program.collectives),
        "hbm_seconds": sum(program.bandwidth_bound_seconds for program in programs),
        "link_seconds": None if None in links else sum(one for one in links if one is not None),
    }


def ours(layer: Layer, target: str, fuse: str) -> list[TpuProgram]:
    """Forward and backward, from torch."""
    with tpu_lowering.fake_mesh({"data": layer.data, "model": layer.model}) as mesh:
        x = torch.empty(layer.activations(), dtype=torch.bfloat16)
        captured = training(TorchLayer(layer, mesh), (x,), target, mesh, fuse)
    return [aot.compile_captured(one, chips.find(target), True, False) for one in captured]


def hand_written(layer: Layer, target: str) -> list[TpuProgram]:
    """The same step, in JAX."""
    count = layer.data * layer.model
    mesh = Mesh(("data", "model"), (layer.data, layer.model), tuple(range(count)))
    spread = PartitionSpec(("data", "model"))
    local = [layer.activations(), *layer.shapes().values()]
    arguments = [((shape[0] * count, *shape[1:]), spread) for shape in local]
    return [by_hand(jax_step(layer), arguments, (spread,) * len(layer.shapes()), target, mesh)]


def document(entries: dict[str, Figures], layer: Layer) -> str:
    """The table, as text."""
    headers = [
        "target", "form", "collectives", "beside work", "sent MiB", "HBM MiB", "HBM / by hand", "peak MiB", "kernels",
        "HBM at least, us", "links at least, us",
    ]  # fmt: skip
    rows: list[list[str]] = []
    for key, found in entries.items():
        target, form = key.split("/")
        counted = ", ".join(f"{count} {kind}" for kind, count in found["collectives"].items())
        links = "-" if found["link_seconds"] is None else f"{found['link_seconds'] * 1e6:,.0f}"
        hand = entries.get(f"{target}/{BY_HAND}", found)
        rows.append([
            target, form, counted, str(found["overlapped"]), mib(found["sent_bytes"]), mib(found["hbm_bytes"]),
            ratio(found["hbm_bytes"], hand["hbm_bytes"]), mib(found["peak_bytes"]), str(found["kernels"]),
            f"{found['hbm_seconds'] * 1e6:,.0f}", links,
        ])  # fmt: skip
    return (
        "# A decoder layer's training step on a mesh\n\n"
        f"Written by `python -m bench mesh`. {layer.batch} x {layer.sequence} tokens, width {layer.width}, MLP "
        f"{layer.hidden}, bfloat16, data {layer.data} x model {layer.model}; figures of one device, as libtpu's "
        "compiler says them. Ours is a forward and a backward, by hand it is one program. On tpu7x a device is one of "
        "a chip's two cores. HBM bytes are by operands, a lower bound for kernels and collectives. Sent: what rings "
        "send. Links: at published bandwidth. **Nothing was measured on a TPU.**"
        "\n\n" + table(headers, rows)
    )


def main(targets: Sequence[str], folder: pathlib.Path | None, width: int = 0) -> int:
    """Compiles, prints and writes ``mesh.json`` and ``mesh.md``; a width other than the layer's makes it smaller."""
    layer = Layer() if not width else Layer(width=width, hidden=3 * width + width // 2, sequence=width // 2)
    entries: dict[str, Figures] = {}
    for target in targets or TARGETS:
        made = {BY_HAND: lambda target=target: hand_written(layer, target)}
        made |= {form: lambda target=target, fuse=fuse: ours(layer, target, fuse) for form, fuse in FUSE.items()}
        for form, compile_ in made.items():
            entries[f"{target}/{form}"] = figures(compile_())
            Console().print(f"{target}, {form}: {entries[f'{target}/{form}']}", soft_wrap=True)
    text = document(entries, layer)
    print(text)
    if not width:
        where = folder or RESULTS
        (where / "mesh.md").write_text(text)
        (where / "mesh.json").write_text(json.dumps({"versions": versions(), **entries}, indent=1) + "\n")
    return 0
