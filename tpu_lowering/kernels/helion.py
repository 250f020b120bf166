"""Helion kernels: the kernel's host code as a graph, and each of its launches as a ``Kernel``.

A Helion kernel is host code (views, allocations, small computations) around one launch of a device
function. Its host code is traced like the user's own, so its allocations are nodes like any other; the
launch arrives as one call of ``tpu_lowering::launch``, which mutates the launch's outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import threading
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import configs
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.kernels.launch import Launch, Variant

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
                _hosts[key] = (kernel, _trace(_Call(kernel, template, tensors, mutated, where, device_kind)))
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call of a Helion kernel; see ``host_graph``."""

    kernel: Any
    template: Any
    tensors: Sequence[torch.Tensor]
    mutated: Sequence[str]
    where: str
    device_kind: str

    def bound(self) -> Any:
        """The kernel bound to the arguments, apart from those that Helion keeps."""
        sample = arguments.fill(self.template, self.tensors)
        values = tuple(sample[name] for name in self.kernel.signature.parameters if name in sample)
        return with_our_settings(self.kernel, not self.device_kind, self.where)._bind_isolated(values)

    def config(self, bound: Any) -> tuple[Any, bool]:
        """The config that Helion would launch with, and whether it is the kernel's own rather than Helion's default."""
        own = bound._user_provided_config() if self.kernel.settings.autotune_effort != "none" else None
        if own is None and self.kernel.configs:
            own = self.kernel.configs[0]
        return (bound.config_spec.default_config(), False) if own is None else (own, True)


def _trace(call: _Call) -> HostGraph:
    """The host graph under the config that Helion would launch with; the launches know those of others."""
    bound = call.bound()
    config, own = call.config(bound)
    host = _under(call, bound, config)
    for launch in host.launches:
        launch.access  # noqa: B018  (refuses device code that cannot be traced before the kernel is used)
    if own or not call.device_kind:
        return host
    others = configs.others(bound.config_spec, config)

    def variants(index: int) -> tuple[Variant, ...]:
        return tuple(Variant(label, functools.partial(_variant, call, host, other, index)) for label, other in others)

    launches = tuple(dataclasses.replace(launch, variants=variants(at)) for at, launch in enumerate(host.launches))
    return HostGraph(host.module, launches)


def _variant(call: _Call, host: HostGraph, config: Any, index: int) -> Launch:
    """A launch under another config.

    Raises:
        ValueError: under it the kernel has other host code.
    """
    other = _under(call, call.bound(), config)
    launch, old = other.launches[index], host.launches[index]
    same = other.module.code == host.module.code and len(other.launches) == len(host.launches)
    if not same or (launch.operands, launch.results) != (old.operands, old.results):
        raise ValueError("expected host code that no config changes, got other host code")
    return launch


def _under(call: _Call, bound: Any, config: Any) -> HostGraph:
    """The host graph under a config."""
    kernel, template, where = call.kernel, call.template, call.where
    names = list(kernel.signature.parameters)
    written = [arguments.slots(template[name]) for name in call.mutated]
    launches: list[Launch] = []

    def launcher(device_function: Any, grid: Sequence[Any], *given: Any, **facts: Any) -> Any:
        launch, outs, ins, fresh = describe_launch(
            kernel.name, device_function, grid, given, facts, where, call.device_kind
        )
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

    run = bound.compile_config(config, allow_print=False)
    with torch.no_grad():
        module = compat.aot_export_joint_simple(host, tuple(call.tensors), trace_joint=False)
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
