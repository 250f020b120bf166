"""JAX functions on tensors of torch_xla: each is one HLO computation in the lazy graph.

torch_xla records what is done to its tensors and runs it at a step boundary. A JAX function enters that record as one
node, a computation of its own, lowered by JAX and never run by it: no tensor goes through the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat, errors, releases
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.kernels import Execution, Kernel
from tpu_lowering.session import kept

PLATFORMS = {"CPU": "cpu", "TPU": "tpu"}
"""torch_xla's names of the devices that it runs on here, and JAX's."""

DEVICE = "xla"
"""torch's name of the device of torch_xla's tensors."""


@functools.cache
def platform() -> str:
    """JAX's name of what torch_xla runs on in this process.

    Raises:
        TpuLoweringError: TL104 for anything else than a CPU or a TPU; TL105 for an untested torch_xla.
    """
    releases.check("torch_xla", DEVICE)
    found = str(compat.xla_module("torch_xla.runtime").device_type())
    if found not in PLATFORMS:
        raise errors.refuse(
            "TL104",
            f"torch_xla on {found}",
            f"expected PJRT_DEVICE to be one of {', '.join(PLATFORMS)}, got {found}",
            "start Python with PJRT_DEVICE=TPU or PJRT_DEVICE=CPU",
        )
    return PLATFORMS[found]


def are_real(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some tensors are torch_xla's and none is a stand-in that something is traced with."""
    plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
    return plain and any(tensor.device.type == DEVICE for tensor in tensors)


def execution() -> Execution:
    """How Pallas kernels run where torch_xla runs."""
    return "mosaic" if platform() == "tpu" else "vectorized"


def chip() -> Chip:
    """What torch_xla runs on.

    Raises:
        TpuLoweringError: as ``platform``; TL104 for an unknown TPU.
    """
    if platform() == "cpu":
        return CPU
    return chips.of_device(str(compat.xla_module("torch_xla.core.xla_model").xla_device_kind()), "torch_xla")


def hlo_module(function: Callable[..., Any], specs: Sequence[Any], target: str) -> bytes:
    """A function of positional arrays as a serialised ``HloModuleProto``, one parameter an argument.

    Args:
        function: returns a tuple of arrays.
        specs: shape and dtype of each argument.
        target: JAX's name of a platform; none of its devices is needed here.
    """
    with compat.enable_x64(True):
        lowered = jax.jit(function, keep_unused=True).trace(*specs).lower(lowering_platforms=(target,))
        return bytes(lowered.compiler_ir("hlo").as_serialized_hlo_module_proto())  # type: ignore[union-attr]


class Computation:
    """A JAX function as an HLO computation. Calling it adds one node to the lazy graph and waits for nothing.

    Attributes:
        proto: the serialised module.
        results: number of its results.
    """

    def __init__(self, name: str, function: Callable[..., Any], specs: Sequence[Any], results: int) -> None:
        self.results, self.takes_nothing = results, not specs
        if self.takes_nothing:  # torch_xla finds the device among the arguments
            specs, without = [jax.ShapeDtypeStruct((), "int8")], function
            function = lambda _: without()  # noqa: E731
        self.proto = hlo_module(function, specs, platform())
        builder = compat.xla_module("torch_xla.core.xla_builder")
        computation = builder.computation_from_module_proto(name, self.proto)
        self.call = builder.xla_computation_as_func(computation, f"tpu_lowering::{name}")

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of one call, as tensors that torch_xla has not computed yet."""
        if not self.results:
            return []
        given = [torch.zeros((), dtype=torch.int8, device=DEVICE)] if self.takes_nothing else list(tensors)
        return list(self.call(given))


@kept(256, "a kernel is lowered and compiled before its first call by itself: half a second")
def of_kernel(kernel: Kernel) -> Computation:
    """A kernel by itself, as eager torch_xla calls it: its operands to its results."""
    specs = [jax.ShapeDtypeStruct(operand.type.shape, operand.type.dtype) for operand in kernel.operands]
    name = kernel.name.replace("::", "_")
    return Computation(name, kernel.form(execution()), specs, len(kernel.results))
