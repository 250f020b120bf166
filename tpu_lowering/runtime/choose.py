"""Which runtime a captured graph gets: the one of the device that its tensors are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import errors
from tpu_lowering.ir import shardings
from tpu_lowering.kernels import tpu_tensors, xla_tensors
from tpu_lowering.options import Options
from tpu_lowering.runtime import places
from tpu_lowering.runtime.base import Runtime
from tpu_lowering.runtime.cache.store import Store
from tpu_lowering.runtime.cpu import CpuRuntime
from tpu_lowering.runtime.device import DeviceRuntime, SavedShardings
from tpu_lowering.runtime.places import Place
from tpu_lowering.runtime.torch_tpu import TorchTpuRuntime
from tpu_lowering.runtime.xla import XlaRuntime


def runtime_for(
    graph: fx.Graph, kind: str, arguments: Sequence[Any], options: Options, saved: SavedShardings | None = None
) -> Runtime:
    """The runtime of a captured graph; it checks the arguments itself.

    Args:
        graph: the graph.
        kind: "forward", "backward" or "inference".
        arguments: what it is called with, as fake tensors.
        options: what the user chose.
        saved: what a forward tells its backward, on a mesh; None for a graph whose results are not the caller's.

    Raises:
        TpuLoweringError: TL103 for several devices, or tensors of torch_tpu or torch_xla with ``options.device``;
            TL104 if ``options.device`` names a device that JAX does not have; TL104 or TL105 for torch_tpu or
            torch_xla on another machine or in another release than it is tested with.
    """
    results: Any = graph.output_node().args[0]
    values = [*arguments, *(node.meta.get("val") for node in results if isinstance(node, fx.Node))]
    devices = {value.device for value in values if isinstance(value, torch.Tensor)}
    elsewhere = sorted((d for d in devices if d.type in (tpu_tensors.DEVICE, xla_tensors.DEVICE)), key=str)
    if elsewhere and (options.device or options.mesh):
        name, value = ("mesh", dict(options.mesh)) if options.mesh else ("device", options.device)
        raise errors.refuse(
            "TL103", f"options[{name!r}] = {value!r}",
            f"expected tensors on the CPU, which options[{name!r}] moves to a JAX device, got one on {elsewhere[0]}",
            f"leave options[{name!r}] out: the program runs where its tensors are",
        )  # fmt: skip
    if elsewhere:
        return TorchTpuRuntime(graph, elsewhere[0]) if elsewhere[0].type == tpu_tensors.DEVICE else XlaRuntime(graph)
    mesh = shardings.mesh_of(options)
    if mesh is not None:
        given = None if saved is None else graph
        return DeviceRuntime(places.find_mesh(mesh, options.device), kind, options.cpu_kernels, given, saved)
    if options.device:
        return DeviceRuntime(Place(places.find_device(options.device)), kind, options.cpu_kernels)
    folders = ("cache", "cache_bytes", "dump")  # a rank's own
    settings = [f"option {name} = {getattr(options, name)!r}" for name in Options.names() if name not in folders]
    return CpuRuntime(options.cpu_kernels, Store.of(options), settings)
