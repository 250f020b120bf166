"""Helion kernels: the kernel's host code as a graph, and each of its launches as a ``Kernel``.

A Helion kernel is host code (views, allocations, small computations) around one launch of a device
function. Its host code is traced like the user's own, so its allocations are nodes like any other; the
launch arrives as one call of ``tpu_lowering::launch``, which mutates the launch's outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.kernels.launch import Launch

_library = torch.library.Library("tpu_lowering", "FRAGMENT")
_library.define("launch(Tensor(a!)[] outs, Tensor[] ins, int index) -> ()")
torch.library.register_fake("tpu_lowering::launch", lambda outs, ins, index: None, lib=_library)
LAUNCH = torch.ops.tpu_lowering.launch.default


@dataclasses.dataclass(frozen=True, eq=False)
class HostGraph:
    """The host code of one specialisation of a Helion kernel.

    Attributes:
        module: graph of ATen operators and ``auto_functionalized_v2(tpu_lowering::launch, index=i)``;
            one placeholder a tensor argument, mutated ones included. It returns the new values of
            the mutated arguments, then the kernel's own tensor results.
        launches: the launches, by index.
    """

    module: fx.GraphModule
    launches: tuple[Launch, ...]


_lock = threading.RLock()
_derived: dict[tuple[int, bool], tuple[Any, Any]] = {}
_hosts: dict[Hashable, tuple[Any, HostGraph]] = {}


def host_graph(
    kernel: Any, given: Mapping[str, Any], mutated: Sequence[str], where: str, device_kind: str = ""
) -> HostGraph:
    """Traces the host code of a kernel.

    Args:
        kernel: the user's ``helion.Kernel``; it stays as it is.
        given: every argument by name, with fake tensors in place of tensors.
        mutated: names of the tensor arguments that the kernel writes.
        where: the user's source line of the call.
        device_kind: JAX's name of the TPU to compile for, or "" for the CPU.

    Raises:
        TpuLoweringError: TL206 if Helion cannot compile the kernel for these arguments, TL210 if it lacks
            a setting.
    """
    template, tensors = arguments.split(dict(given), lambda value: isinstance(value, torch.Tensor))
    layouts = tuple((TensorType.of(tensor), tensor.stride()) for tensor in tensors)
    key = (id(kernel), arguments.key(template), layouts, tuple(mutated), device_kind)
    with _lock:
        if key not in _hosts:
            try:
                _hosts[key] = (kernel, _trace(kernel, template, tensors, mutated, where, device_kind))
            except errors.TpuLoweringError:
                raise
            except Exception as error:
                raise cannot_compile(kernel.name, error, where) from error
        return _hosts[key][1]


def cannot_compile(name: str, error: Exception, where: str) -> errors.TpuLoweringError:
    """The refusal of a Helion kernel that Helion itself cannot compile."""
    return errors.refuse(
        "TL206",
        name,
        f"expected a kernel that Helion's Pallas backend compiles, got {type(error).__name__}: {first_line(error)}",
        "see Helion's message above; change the kernel, or its config, for these argument shapes",
        where,
    )


def with_our_settings(kernel: Any, interpret: bool, where: str) -> Any:
    """The kernel with Helion's code generated for Pallas's interpreter, or for a TPU; made once for each.

    Raises:
        TpuLoweringError: TL210, for a kernel of another backend than Pallas.
    """
    with _lock:
        if (id(kernel), interpret) not in _derived:
            if kernel.settings.backend != "pallas":
                raise errors.refuse(
                    "TL210",
                    kernel.name,
                    f"expected a kernel of Helion's Pallas backend, got backend={kernel.settings.backend!r}",
                    'write @helion.kernel(..., backend="pallas")',
                    where,
                )
            settings = copy.copy(kernel.settings)
            settings.pallas_interpret = interpret
            derived = compat.helion_kernel_class()(
                kernel.fn, configs=kernel.configs, settings=settings, key=kernel._key_fn
            )
            _derived[id(kernel), interpret] = (kernel, derived)
        return _derived[id(kernel), interpret][1]


def _compiled(kernel: Any, values: Sequence[Any], where: str, device_kind: str) -> Callable[..., Any]:
    """The generated host function for given arguments, under the config that Helion would launch with."""
    bound = with_our_settings(kernel, not device_kind, where)._bind_isolated(tuple(values))
    config = bound._user_provided_config() if kernel.settings.autotune_effort != "none" else None
    if config is None:
        config = kernel.configs[0] if kernel.configs else bound.config_spec.default_config()
    return bound.compile_config(config, allow_print=False)


def _trace(
    kernel: Any, template: Any, tensors: Sequence[torch.Tensor], mutated: Sequence[str], where: str, device_kind: str
) -> HostGraph:
    names = list(kernel.signature.parameters)
    written = [arguments.slots(template[name]) for name in mutated]
    launches: list[Launch] = []

    def launcher(device_function: Any, grid: Sequence[Any], *given: Any, **facts: Any) -> Any:
        launch, outs, ins, fresh = describe_launch(kernel.name, device_function, grid, given, facts, where, device_kind)
        launches.append(launch)
        LAUNCH(outs, ins, len(launches) - 1)
        return fresh[0] if len(fresh) == 1 else tuple(fresh)

    def host(*values: torch.Tensor) -> list[torch.Tensor]:
        launches.clear()
        owned = list(values)
        for index in itertools.chain.from_iterable(written):
            owned[index] = owned[index].clone()
        filled = arguments.fill(template, owned)
        result = run(*(filled[name] for name in names if name in filled), _launcher=launcher)
        own = [leaf for leaf in compat.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return [*(owned[index] for index in itertools.chain.from_iterable(written)), *own]

    sample = arguments.fill(template, tensors)
    run = _compiled(kernel, [sample[name] for name in names if name in sample], where, device_kind)
    with torch.no_grad():
        module = compat.aot_export_joint_simple(host, tuple(tensors), trace_joint=False)
    for launch in launches:
        launch.access  # noqa: B018  (refuses device code that cannot be traced before the kernel is used)
    return HostGraph(module, tuple(launches))


def describe_launch(
    name: str,
    device_function: types.FunctionType,
    grid: Sequence[Any],
    given: Sequence[Any],
    facts: Mapping[str, Any],
    where: str,
    device_kind: str,
) -> tuple[Launch, list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """A launch as Helion's generated host code makes it, as a value.

    Args:
        name: the kernel's name.
        device_function: the generated function over references.
        grid: extents of the grid.
        given: arguments of the device function: tensors and numbers.
        facts: Helion's own facts on the launch (``_output_indices``, ``_block_spec_info``, ...).
        where: the user's source line of the call.
        device_kind: JAX's name of the TPU it is for, or "" for the CPU.

    Returns:
        The launch; its outputs; its read-only tensors; the outputs that the host code expects back,
        because the launch allocates them.
    """
    outputs: list[int] = list(facts.get("_output_indices") or ())
    recorded = facts.get("_inplace_indices")
    inplace: list[int] = outputs if recorded is None else list(recorded)
    tensors = {
        position: _allocated(value) if position in outputs and position not in inplace else value
        for position, value in enumerate(given)
        if isinstance(value, torch.Tensor)
    }
    read_only = [position for position in tensors if position not in outputs]
    launch = Launch.create(name, device_function, grid, given, facts, tensors, read_only, outputs, where, device_kind)
    fresh = [tensors[position] for position in outputs if position not in inplace]
    return launch, [tensors[p] for p in outputs], [tensors[p] for p in read_only], fresh


def _allocated(placeholder: torch.Tensor) -> torch.Tensor:
    """The buffer for an output that the host code only describes (it allocates it on ``meta``)."""
    return torch.empty(placeholder.shape, dtype=placeholder.dtype, device="cpu")
