"""A local program as one for all devices of a mesh: each runs it, on inputs and for results of its own.

Under one ``shard_map`` passes, kernels and rows see what one device has, and collectives name axes. Nothing is
replicated as far as XLA knows: the array that all devices' inputs make together has them one after the other along its
first dimension, so each device's part is the tensor that its process has. Numbers go as arrays of one element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.types import TensorType


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """Devices on which a local program runs.

    Attributes:
        mesh: how they stand.
        devices: JAX's, one for each place; () where there are none: such a program can be exported, and no more.
        kind: what JAX calls one device, where there are none.
    """

    mesh: Mesh
    devices: tuple[Any, ...]
    kind: str = ""

    def _sharding(self) -> jax.sharding.NamedSharding:
        if not self.devices:
            mesh: Any = compat.mesh_without_devices(self.mesh.sizes, self.mesh.axes, self.kind)
        else:
            grid = np.array(self.devices, dtype=object).reshape(self.mesh.sizes)
            mesh = jax.sharding.Mesh(grid, self.mesh.axes)
        return jax.sharding.NamedSharding(mesh, self._spec())

    def _spec(self) -> jax.sharding.PartitionSpec:
        return jax.sharding.PartitionSpec(self.mesh.axes)

    def jitted(self, function: Callable[..., Sequence[Any]], types: Sequence[TensorType], **given: Any) -> Any:
        """A local function for all devices, jitted; ``types`` are those of its arguments, ``given`` is for ``jit``."""

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            arguments = [array.reshape(type_.shape) for array, type_ in zip(arrays, types, strict=True)]
            return tuple(result.reshape(on_device(result.shape)) for result in function(*arguments))

        local.__name__ = function.__name__
        sharding = self._sharding()
        spec = self._spec()
        mapped = jax.shard_map(local, mesh=sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped, in_shardings=sharding, out_shardings=sharding, **given)

    def specs(self, types: Sequence[TensorType]) -> list[jax.ShapeDtypeStruct]:
        """What the jitted function takes, for local types."""
        sharding, found = self._sharding(), list[jax.ShapeDtypeStruct]()
        for type_ in types:
            first, *others = on_device(type_.shape)
            shape = (first * self.mesh.count, *others)
            found.append(jax.ShapeDtypeStruct(shape, type_.dtype, sharding=sharding))
        return found


def on_device(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a device's part, of a tensor's shape."""
    return tuple(shape) or (1,)
