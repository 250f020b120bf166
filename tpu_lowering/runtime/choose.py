"""Which runtime a captured graph gets: the one of the device that its tensors are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering.kernels.xla_tensors import DEVICE
from tpu_lowering.options import Options
from tpu_lowering.runtime.base import Runtime
from tpu_lowering.runtime.cpu import CpuRuntime
from tpu_lowering.runtime.device import DeviceRuntime
from tpu_lowering.runtime.xla import XlaRuntime


def runtime_for(graph: fx.Graph, kind: str, arguments: Sequence[Any], options: Options) -> Runtime:
    """The runtime of a captured graph; it checks the arguments itself.

    Args:
        graph: the graph.
        kind: "forward", "backward" or "inference".
        arguments: what it is called with, as fake tensors.
        options: what the user chose.

    Raises:
        TpuLoweringError: TL103 for several devices; TL104 if ``options.device`` names a device that JAX does not have;
            TL104 or TL105 for torch_xla on another machine or in another release than it is tested with.
    """
    results: Any = graph.output_node().args[0]
    tensors = [*arguments, *(node.meta.get("val") for node in results if isinstance(node, fx.Node))]
    if any(isinstance(tensor, torch.Tensor) and tensor.device.type == DEVICE for tensor in tensors):
        return XlaRuntime(graph)
    if options.device:
        return DeviceRuntime(options.device, kind, options.cpu_kernels)
    return CpuRuntime(options.cpu_kernels, options.cache)
