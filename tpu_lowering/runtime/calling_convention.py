"""The edge that all runtimes share: which arguments they take, and results as eager would give them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import torch
from torch import fx

from tpu_lowering import errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.collectives import EXCHANGES
from tpu_lowering.ir.kernels import Kernel
from tpu_lowering.ir.programs import Output, Program, Signature, dense_order
from tpu_lowering.kernels import vectorized
from tpu_lowering.lower.program import orders_in_memory
from tpu_lowering.normalise import signature as edges

Order = tuple[int, ...] | None
"""The order of a value's dimensions in memory, see ``lower.program.orders_in_memory``; None for row by row."""


def orders_of_results(signature: Signature) -> list[Order]:
    """The order in which each computed result leaves a program."""
    return orders_in_memory(signature, [spec.shape for spec in signature.outputs if spec.is_computed])


def orders_of_saved(program: Program) -> list[Order]:
    """For each computed result that a forward saves for its backward, the order in which it leaves; None for others.

    What stays on a device for the backward is to leave as the backward takes it: in the order of its dimensions.
    """
    computed = [spec for spec in program.signature.outputs if spec.is_computed]
    orders = orders_of_results(program.signature)
    return [order if spec.is_saved else None for spec, order in zip(computed, orders, strict=True)]


def in_logical_order(
    function: Callable[..., tuple[jax.Array, ...]], orders: Sequence[Order]
) -> Callable[..., tuple[jax.Array, ...]]:
    """A program's function with the dimensions of some results in the order of their shapes.

    Args:
        function: gives results in eager's storage order (see ``lower.program``).
        orders: for each result that is to be in the order of its shape, the one that it leaves in; None for others.
    """

    @functools.wraps(function)
    def restored(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        found = list(function(*inputs))
        for at, order in enumerate(orders):
            if order is not None:
                found[at] = found[at].transpose([order.index(dimension) for dimension in range(len(order))])
        return tuple(found)

    return restored if any(order is not None for order in orders) else function


def results(signature: Signature, arguments: Sequence[Any], computed: Sequence[torch.Tensor]) -> list[Any]:
    """What the caller expects, from what a program computed.

    None of the tensors is a view that autograd knows of, unless the signature says so: what was made without gradients
    could not be updated in place with one.

    Args:
        signature: the program's.
        arguments: the call's; those that the program mutates have their new values.
        computed: the program's results without the mutated values; row-major, in memory of their own.

    Returns:
        The results with eager's strides, at eager's places in the memory of arguments and of each other.
    """
    given = iter(computed)
    found = [_restored(spec, given) if spec.place is None else None for spec in signature.outputs]
    place_all(signature.outputs, arguments, found)
    return found[: signature.returned]


def place_all(outputs: Sequence[Output | None], arguments: Sequence[Any], found: list[Any]) -> None:
    """Enters the results that lie in the memory of arguments and of other results into a list of all results."""
    for at, spec in enumerate(outputs):
        if spec is not None and spec.place is not None:
            found[at] = _placed(spec, (arguments if spec.place.of_argument else found)[spec.place.base])


def _restored(spec: Output, tensors: Iterator[torch.Tensor]) -> Any:
    """A result with eager's strides; see ``lower.program.make_program`` for the order it comes in."""
    stride = spec.stride
    if stride is None:
        return spec.constant
    tensor = next(tensors)
    if tensor.stride() == stride and tensor.shape == spec.shape:
        return tensor
    if dense_order(spec.shape, stride) is not None:
        return tensor.as_strided(spec.shape, stride).detach()
    return strided_copy(tensor, stride)


def _placed(spec: Output, base: torch.Tensor) -> torch.Tensor:
    """A result in the memory of a tensor. They share a version counter, so that a backward notices an update."""
    place, stride = spec.place, spec.stride
    assert place is not None and stride is not None
    if place.offset is None:
        return base
    with torch.set_grad_enabled(place.tracked):
        memory, start = base, int(base.storage_offset())
        if place.dtype != base.dtype:
            memory = _of_dtype(base, place.dtype)
            start = start * base.itemsize // memory.itemsize
        view = memory.as_strided(spec.shape, stride, start + place.offset)
        return view if place.tracked else view.detach()


def _of_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All of a tensor's memory, as elements of another type."""
    step = max(tensor.itemsize, dtype.itemsize)
    count = tensor.untyped_storage().nbytes() // step * step // tensor.itemsize
    memory = tensor.as_strided((count,), (1,), 0)
    if tensor.is_complex() and dtype.itemsize * 2 == tensor.itemsize:
        return torch.view_as_real(memory).view(-1)
    if dtype.is_complex and tensor.itemsize * 2 == dtype.itemsize:
        return torch.view_as_complex(memory.view(-1, 2))
    return memory.view(dtype)


def strided_copy(tensor: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A copy with strides that are not dense: gaps stay undefined, expanded dimensions share one element."""
    result = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in stride)
    result[once].copy_(tensor[once])
    return result


def check_devices(arguments: Sequence[Any]) -> None:
    """Refuses tensors that are not all on the CPU.

    Raises:
        TpuLoweringError: TL103 for several devices, TL104 for one without runtime.
    """
    devices = sorted({str(value.device) for value in arguments if isinstance(value, torch.Tensor)})
    if len(devices) > 1:
        raise several_devices(devices)
    if devices and not devices[0].startswith("cpu"):
        raise errors.refuse(
            "TL104", devices[0], f"expected tensors on a device with a runtime (cpu, tpu, xla), got {devices[0]}",
            "move the model and its inputs to the CPU with .to('cpu')",
        )  # fmt: skip


def check_on_device(graph: fx.Graph, arguments: Sequence[Any], device: str) -> None:
    """Refuses tensors elsewhere than on one device. A single number on the CPU that is only read is taken.

    Args:
        graph: the captured graph.
        arguments: what it is called with.
        device: "tpu:0", "xla:0".

    Raises:
        TpuLoweringError: TL103; for a result elsewhere too: giving it would wait for the program.
    """
    written = edges.written_back(graph)
    tensors = [(at, value) for at, value in enumerate(arguments) if isinstance(value, torch.Tensor)]
    needed = [t for at, t in tensors if t.device.type != "cpu" or t.ndim > 0 or at in written]
    devices = {device, *(str(tensor.device) for tensor in needed)}
    if len(devices) > 1:
        raise several_devices(sorted(devices))
    kind = device.partition(":")[0]
    results: Any = graph.output_node().args[0]
    for node in results:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if isinstance(value, torch.Tensor) and value.device.type != kind:
            raise errors.refuse(
                "TL103",
                f"result {node.name}",
                f"expected all results on the device of the arguments ({kind}), got one on {value.device}",
                "move it with .to(device) outside of the compiled function, where the program need not wait for it",
                graphs.source_line(node),
            )


def refuse_mesh(program: Program, where: str) -> None:
    """Refuses a program of several ranks where a runtime has programs of one device alone.

    Args:
        program: the program.
        where: what its tensors are on, in words.

    Raises:
        TpuLoweringError: TL707.
    """
    if program.mesh is not None:
        raise errors.refuse(
            "TL707",
            f"a program on the mesh {program.mesh}",
            f"expected tensors on the CPU, one process a rank, got {where}",
            "move the model and its inputs to the CPU, without options['device']; "
            'or keep collectives in eager torch, with options={"fallback": "eager"}',
            first_collective(program),
        )


def first_collective(program: Program) -> str:
    """The user's source line of a program's first collective; "" if it has none."""
    nodes = [node for node in program.module.graph.nodes if node.target in EXCHANGES]
    return next(filter(None, map(graphs.source_line, nodes)), "")


def several_devices(devices: Sequence[str], where: str = "") -> errors.TpuLoweringError:
    """The refusal of tensors on several devices."""
    return errors.refuse(
        "TL103", ", ".join(devices), f"expected all tensors on one device, got {' and '.join(devices)}",
        "move the model and its inputs to one device with .to(device)", where,
    )  # fmt: skip


def interpreted_calls(program: Program) -> list[Action]:
    """The kernel calls that the vectorizer leaves to Pallas's interpreter, each with why."""
    found = [(node, _why_interpreted(graphs.kernel_of(node))) for node in graphs.kernel_calls(program.module.graph)]
    return [
        Action("interpreted", node.name, graphs.source_line(node), "TL506", f"{graphs.kernel_of(node)!r}: {why}", 0)
        for node, why in found
        if why
    ]


def _why_interpreted(kernel: Kernel) -> str:
    return next(filter(None, map(vectorized.why_not, kernel.calls())), "")
