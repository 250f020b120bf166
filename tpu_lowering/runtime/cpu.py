"""The embedded runtime: programs on JAX's CPU backend, called with the user's torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import torch

from tpu_lowering import errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import arrays
from tpu_lowering.ir.programs import Output, Program, dense_order


class CpuRuntime:
    """JAX's CPU backend, in this process."""

    device_kind = ""

    def check(self, arguments: Sequence[Any]) -> None:
        check_devices(arguments)

    def compile(self, program: Program, source: Source) -> CpuProgram:
        return CpuProgram(program, source)


class CpuProgram:
    """A compiled program.

    Calling it is thread-safe: it holds no state but the compiled code and the program's constants.
    """

    def __init__(self, program: Program, source: Source) -> None:
        self.program = program
        function = load.load(program, source)
        with jax.enable_x64(True):
            self.constants = [arrays.to_jax(value) for value in program.constants().values()]
            specs = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in load.input_types(program)]
            self.compiled = jax.jit(function).lower(*specs).compile()

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program.

        Args:
            arguments: the captured graph's arguments: CPU tensors and integers.

        Returns:
            The results, with the strides eager gives them. Mutated arguments have been written back to.
        """
        with jax.enable_x64(True):
            inputs = [arrays.to_jax(arguments[position]) for position in self.program.inputs]
            results = jax.block_until_ready(self.compiled(*inputs, *self.constants))
            taken = {_pointer(arguments[position]) for position in self.program.inputs}
            taken.update(constant.unsafe_buffer_pointer() for constant in self.constants if constant.size)
            tensors = [_owned(arrays.to_torch(result), taken) for result in results]
        signature = self.program.signature
        given = iter(tensors)
        own = [_restored(spec, given) for spec in signature.outputs]
        outputs = [_viewed(spec, tensor, own) for spec, tensor in zip(signature.outputs, own, strict=True)]
        for position, value in zip(signature.mutated, given, strict=True):
            with torch.no_grad():
                arguments[position].copy_(value)
        return outputs[: signature.returned]


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _owned(tensor: torch.Tensor, taken: set[int]) -> torch.Tensor:
    """A result in memory of its own: JAX hands an input that is returned unchanged, or one value returned
    twice, out as the same buffer."""
    pointer = tensor.data_ptr()
    if tensor.numel() and pointer in taken:
        return tensor.clone()
    taken.add(pointer)
    return tensor


def _restored(spec: Output, tensors: Any) -> Any:
    """A result with eager's strides; see ``layout.finish`` for the order it comes in."""
    if spec.stride is None or not spec.is_computed:
        return spec.constant
    tensor = next(tensors)
    stride = spec.stride
    if tensor.stride() == stride:
        return tensor
    shape = Program.caller_shape(tensor.shape, stride)
    order = dense_order(shape, stride)
    if order is not None:
        return tensor.as_strided(shape, stride)
    return _strided_copy(tensor, stride)


def _viewed(spec: Output, tensor: Any, outputs: Sequence[Any]) -> Any:
    """A result; one that shares another's memory is made here, as a view of it."""
    if spec.view is None:
        return tensor
    memory, place = outputs[spec.view.base].untyped_storage(), spec.view
    return torch.empty(0, dtype=place.dtype).set_(memory, place.offset, place.shape, spec.stride)


def _strided_copy(tensor: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A copy with strides that are not dense: gaps stay undefined, expanded dimensions share one element."""
    result = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype)
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in stride)
    result[once].copy_(tensor[once])
    return result


def check_devices(arguments: Sequence[Any]) -> None:
    """Refuses tensors that are not all on the CPU.

    Raises:
        TpuLoweringError: TL103 for several devices, TL104 for one without runtime, TL302 for a dtype
            that JAX does not have.
    """
    devices = sorted({str(value.device) for value in arguments if isinstance(value, torch.Tensor)})
    if len(devices) > 1:
        raise errors.refuse(
            "TL103", ", ".join(devices), f"expected all tensors on one device, got {' and '.join(devices)}",
            "move the model and its inputs to one device with .to(device)",
        )  # fmt: skip
    if devices and not devices[0].startswith("cpu"):
        raise errors.refuse(
            "TL104", devices[0], f"expected tensors on a device with a runtime (cpu), got {devices[0]}",
            "move the model and its inputs to the CPU with .to('cpu')",
        )  # fmt: skip
