"""JAX functions on tensors of torch_tpu: each is exported for a TPU, and registered with torch_tpu under a name.

Both are done before the first call, and need no TPU. A call is torch_tpu's launch and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import torch
from jax.interpreters import mlir

from tpu_lowering import compat, releases
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import Kernel
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.session import kept

DEVICE = "tpu"
"""torch's name of the device of torch_tpu's tensors."""


@functools.cache
def chip() -> Chip:
    """The TPU that torch_tpu runs on.

    Raises:
        TpuLoweringError: TL105 for an untested torch_tpu, TL104 for an unknown TPU, or none.
    """
    releases.check("torch_tpu", DEVICE)
    return chips.of_device(compat.tpu_name(), "torch_tpu")


def are_real(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some tensors are torch_tpu's and none is a stand-in that something is traced with."""
    plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
    return plain and any(tensor.device.type == DEVICE for tensor in tensors)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device of torch_tpu's: a constant, or a number from the CPU."""
    return tensor if tensor.device == device else tensor.to(device)


class Registered:
    """A JAX function that torch_tpu knows by name and contents.

    Attributes:
        exported: the function for a TPU; its ``mlir_module_serialized`` is what torch_tpu compiles.
        key: digest of its StableHLO without source locations, so that processes share what torch_tpu compiled.
        donated: positions of the arguments whose buffers it may overwrite.
    """

    def __init__(
        self,
        name: str,
        jitted: Any,
        specs: Sequence[Any],
        donated: tuple[int, ...] = (),
        devices: Sequence[int] = (),
        results: Sequence[TensorType] | None = None,
    ) -> None:
        """Exports and registers.

        Args:
            name: any; profiles show it.
            jitted: of positional arrays; returns a tuple of arrays. No position is donated but ``donated``, so no
                result is aliased to anything else.
            specs: shape and dtype of each argument.
            donated: positions of the arguments whose buffers it may overwrite.
            devices: torch_tpu's numbers of the devices that all run it; none for the tensors' own.
            results: the types of a device's results, if they are not the function's.
        """
        self.donated = donated
        with jaxprs.kernel_scope([], chip()), compat.enable_x64(True), compat.exports_for_now():
            self.exported = compat.tpu_callable(name, jitted, donated).exported(*specs)
        self.key = digest(self.exported.mlir_module())
        kernels = compat.tpu_kernels()
        kernels.register_custom_kernel(name, self.key, serialized_mlir_module=self.exported.mlir_module_serialized)
        # torch_tpu takes the types of results as tensors; it never computes these.
        types = [TensorType.of(result) for result in self.exported.out_avals] if results is None else results
        shapes = [torch.empty(type_.shape, dtype=type_.element.torch, device=DEVICE) for type_ in types]
        assigned = {"device_assignment": list(devices)} if devices else {}
        self.launch = functools.partial(
            kernels.call_custom_kernel, name, self.key, output_shapes=shapes, donate_argnums=list(donated), **assigned
        )

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results of one call on tensors of the device; waits for nothing. Donated ones are invalid afterwards."""
        return self.launch(inputs=list(tensors))


def digest(stablehlo: str) -> str:
    """A digest of a module without its source locations, as torch_tpu names what it registers itself."""
    with mlir.make_ir_context():
        text = mlir.ir.Module.parse(stablehlo).operation.get_asm(enable_debug_info=False)
    return hashlib.blake2b(str(text).encode(), digest_size=16).hexdigest()


@kept(256, "a kernel is exported and registered before its first call by itself: half a second")
def of_kernel(kernel: Kernel) -> Registered:
    """A kernel by itself, as eager torch calls it: its operands to its results."""
    specs = [jax.ShapeDtypeStruct(operand.type.shape, operand.type.dtype) for operand in kernel.operands]
    return Registered(kernel.name.replace("::", "_"), jax.jit(kernel.form("mosaic"), keep_unused=True), specs)
