"""Where programs of JAX's run: a device, or a mesh of devices; and how an array lies there."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

import jax

from tpu_lowering import errors
from tpu_lowering.ir import shardings
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.options import Axes

Device = Any  # jax.Device, which type checkers take for a variable


@dataclasses.dataclass(frozen=True)
class Place:
    """A device, or a mesh of devices.

    Attributes:
        device: the device; of a mesh the first.
        mesh: the mesh; None for a device.
    """

    device: Device
    mesh: jax.sharding.Mesh | None = None

    @property
    def key(self) -> Hashable:
        """What tells it from other places."""
        return self.device if self.mesh is None else self.mesh

    def sharding(self, axes: Axes = ()) -> jax.sharding.Sharding:
        """How an array lies that is split along some axes; without any, it is whole on each device."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(self.device)
        return jax.sharding.NamedSharding(self.mesh, shardings.spec(shardings.trimmed(axes)))

    def scope(self) -> AbstractContextManager[Any]:
        """A scope in which JAX traces for it."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def is_shared(self) -> bool:
        """Whether other processes have some of the devices."""
        return self.mesh is not None and self.mesh.is_multi_process


def find_device(name: str) -> Device:
    """A device of this process by its name, ``"tpu:1"``, or ``"tpu"`` for the first.

    Raises:
        TpuLoweringError: TL104 if JAX has no such device.
    """
    platform, _, index = name.partition(":")
    try:
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, IndexError) as error:
        existing = ", ".join(device_names())
        raise errors.refuse(
            "TL104",
            f"JAX device {name!r}",
            f"expected one of {existing}, got {name!r}",
            "choose one of them, or make JAX find the device: install its plugin (libtpu for a TPU), and let "
            "JAX_PLATFORMS name the platform; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N CPU devices",
        ) from error


def device_names() -> list[str]:
    """The devices of this process that ``options["device"]`` can name: those of JAX's default platform and the CPU."""
    found = [*jax.local_devices(), *_cpu_devices()]
    by_platform: dict[str, list[Device]] = {}
    for device in dict.fromkeys(found):
        by_platform.setdefault(device.platform, []).append(device)
    return [f"{platform}:{index}" for platform, devices in by_platform.items() for index in range(len(devices))]


def _cpu_devices() -> list[Device]:
    try:
        return jax.local_devices(backend="cpu")
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return []


def find_mesh(mesh: Mesh, platform: str) -> Place:
    """The place of a mesh of JAX's devices, those of other processes included.

    Args:
        mesh: axes and sizes.
        platform: of the devices; "" for JAX's default.

    Raises:
        TpuLoweringError: TL104 if JAX has fewer devices, or no such platform.
    """
    try:
        devices = jax.devices(platform or None)
    except RuntimeError:
        devices = []
    if len(devices) < mesh.count:
        have = f"{len(devices)} of platform {platform!r}" if platform else str(len(devices))
        raise errors.refuse(
            "TL104",
            f"a mesh of {mesh}",
            f"expected {math.prod(mesh.sizes)} devices of JAX's, got {have}",
            "give the mesh as many devices as there are; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N "
            "CPU devices, and jax.distributed.initialize() those of other processes",
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(mesh.axes)
    found = jax.make_mesh(mesh.sizes, mesh.axes, axis_types=axis_types, devices=devices[: mesh.count])
    return Place(found.devices.flat[0], found)
