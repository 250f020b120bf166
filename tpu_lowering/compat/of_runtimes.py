"""Private names of torch_xla and torch_tpu, imported only for tensors of their devices."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from tpu_lowering.compat.lookup import missing, private


# torch_xla: imported only for tensors of its device -----------------------------------------------------
def xla_module(name: str) -> Any:
    """A public module of torch_xla.

    Raises:
        TpuLoweringError: TL105 if torch_xla cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing("torch_xla", name, "tensors on device xla", f"{type(error).__name__}: {error}") from error


def xla_sharding(tensor: Any) -> str:
    """How ``mark_sharding`` has spread a tensor of torch_xla, in XLA's words; "" for one that is on one device."""
    spec = private("torch_xla", "torch_xla", "_XLAC", "tensors that are spread over devices")._get_xla_sharding_spec
    return str(spec(tensor)) if xla_module("torch_xla.runtime").is_spmd() else ""


def function_of_xla_kernel(kernel: Any) -> Callable[..., Any] | None:
    """The JAX function that ``torch_xla.experimental.custom_kernel.make_kernel_from_pallas`` was given; else None.

    It returns a ``functools.partial`` of a function of its own, with that function as the first argument.
    """
    made = (
        getattr(getattr(kernel, "func", None), "__qualname__", "") == "make_kernel_from_pallas.<locals>.wrapped_kernel"
    )
    return kernel.args[0] if made else None


# torch_tpu: imported only for tensors of its device ------------------------------------------------------
def tpu_callable(name: str, jitted: Any, donated: Sequence[int]) -> Any:
    """torch_tpu's ``JaxCallable`` of a jitted function; its ``exported`` exports the function for a TPU."""
    module, why = "torch_tpu._internal.pallas.pallas", "JAX functions on tensors of device tpu"
    kind = private("torch_tpu", module, "JaxCallable", why)
    return kind(name=name, jit_fn=jitted, trace_key=name, donate_argnums=list(donated))


def tpu_kernels() -> Any:
    """What ``JaxCallable`` registers and calls its functions with: ``register_custom_kernel``, ``call_custom_kernel``.

    Torch's Inductor calls them for its Pallas kernels. A ``JaxCallable`` exports and registers at its first call, and
    builds a key of all shapes at every call (0.5 ms for 300 tensors) to know whether it is the first.
    """
    return private("torch_tpu", "torch_tpu._internal.pallas", "tpu_torch_pallas", "programs on tensors of device tpu")


def tpu_name() -> str:
    """torch_tpu's name of this machine's TPU, "TPU v7"; "TPU" without one. The public function warns when called."""
    module, why = "torch_tpu._internal.utils.hardware", "kernels are lowered for one kind of TPU"
    return str(private("torch_tpu", module, "get_tpu_device_name", why)())


def tpu_mesh_devices(axes: Sequence[str], sizes: Sequence[int]) -> tuple[Any, ...]:
    """What stands for the devices of all ranks when a program for them is exported; each has torch_tpu's number.

    The public ``torch.tpu.pallas.get_pallas_mesh`` imports all of torch_tpu's kernels.
    """
    module, why = "torch_tpu._internal.pallas.pallas", "programs on tensors of several devices tpu"
    made = private("torch_tpu", module, "_get_pallas_mesh", why)(tuple(axes), mesh_shape=tuple(sizes))
    return tuple(made.devices.flat)


def exports_for_now() -> contextlib.AbstractContextManager[Any]:
    """A scope in which JAX exports for its own release, as torch_tpu exports: not for the last months' too."""
    name, why = "export_ignore_forward_compatibility", "JAX holds back newer lowerings from exports otherwise"
    return private("jax", "jax._src.config", name, why)(True)
