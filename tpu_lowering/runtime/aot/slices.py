"""The devices that a program is compiled for: those of a slice, as a process group of torch.distributed sees them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Mapping
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tpu_lowering import compat, errors, offenders
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.mesh import Irregular, Mesh, filled
from tpu_lowering.ir.programs import Program


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices of chips that stand together.

    Attributes:
        chip: of which kind, and in what topology.
        ranks: how many take part.
        named: the axes that the user has named; None where only groups of ranks are known.
    """

    chip: Chip
    ranks: int
    named: Mesh | None

    def mesh_for(self, program: Program) -> Mesh | None:
        """The mesh of all devices, with the axes that a program's collectives are along; None for one device.

        Raises:
            TpuLoweringError: TL722 for a topology with another number of devices, TL723.
        """
        if program.mesh is None and self.named is None:
            return None
        self.check()
        try:
            return filled(program.mesh, self.chip.slice_devices)
        except Irregular as error:
            raise errors.refuse(
                "TL723",
                program.name,
                f"expected axes that make a grid of the {self.chip.slice_devices} devices of {self.chip.topology}, got "
                f"{error}",
                "make the groups with torch.distributed.device_mesh.init_device_mesh over all ranks",
            ) from None

    def check(self) -> None:
        """Checks that there is a device for each rank.

        Raises:
            TpuLoweringError: TL722.
        """
        chip = self.chip
        if chip.slice_devices != self.ranks:
            raise errors.refuse(
                "TL722",
                repr(chip.topology),
                f"expected a topology of {self.ranks} devices, one for each rank, got {chip.slice_devices}"
                + (f" ({chip.devices} a chip)" if chip.devices > 1 else ""),
                f"name a topology of {-(-self.ranks // chip.devices)} chips, or make a mesh of {chip.slice_devices} "
                "ranks",
            )


@contextlib.contextmanager
def fake_mesh(sizes: Mapping[str, int]) -> Generator[DeviceMesh]:
    """A scope with a mesh of ranks that are not there, to compile for without a TPU.

    In it ``torch.distributed`` has a group of fake ranks, of which this process is the first. Models are made parallel
    as on real ranks. Values that collectives give in it are wrong; shapes are right. ::

        with tpu_lowering.fake_mesh({"data": 4, "model": 4}) as mesh:
            parallelize_module(model, mesh["model"], plan)
            program = tpu_lowering.aot_compile(model, (x,), target="v5e:4x4", mesh=mesh)

    Args:
        sizes: how many ranks stand along each axis, the outermost first.

    Raises:
        TpuLoweringError: TL724 in a process that has a group already, and TL112 for sizes that are none.
    """
    given: Any = sizes
    if (
        not isinstance(given, Mapping)
        or not given
        or not all(isinstance(name, str) and type(size) is int and size > 0 for name, size in given.items())
    ):
        expected = f"names of axes and how many ranks stand along each, got {offenders.shown(sizes)}"
        raise errors.wrong_argument("sizes", expected, 'fake_mesh({"data": 4})')
    if dist.is_initialized():
        raise errors.refuse(
            "TL724",
            f"torch.distributed with {dist.get_world_size()} ranks",
            "expected a process without a group of ranks, got one that has a group",
            "make a mesh of its ranks with torch.distributed.device_mesh.init_device_mesh",
        )
    with compat.fake_group(math.prod(sizes.values())):
        yield init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def slice_of(target: str, chip: Chip, mesh: Any) -> Slice | None:
    """The devices that a function is compiled for; None for one device.

    Args:
        target: as the user wrote it.
        chip: what it names.
        mesh: a ``DeviceMesh``, or None.

    Raises:
        TpuLoweringError: TL112 for what is no mesh, TL721 for a target that is one device, TL722 for one with another
            number of devices than there are ranks.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if mesh is None and ranks == 1:
        return None
    named = None if mesh is None else _named(mesh, ranks)
    if ":" not in target:
        if mesh is None:
            return None
        raise one_device(chip, f"a mesh of {named}")
    devices = Slice(chip, ranks, named)
    if mesh is not None:
        devices.check()
    return devices


def one_device(chip: Chip, got: str) -> errors.TpuLoweringError:
    """The refusal of what takes all ranks, for a target that is one device."""
    example = topology_of(chip, dist.get_world_size()) or chip.topology
    return errors.refuse(
        "TL721",
        repr(chip.name),
        f"expected a topology for {got}, got one device",
        f'write target="{example}"',
    )


_SHAPES = {
    2: "2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    3: "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
}
"""Topologies of two and of three dimensions that Google Cloud offers and libtpu has."""


def topology_of(chip: Chip, devices: int) -> str | None:
    """A topology of so many devices, such as "v5e:4x4"; None if there is none."""
    named = (f"{chip.name}:{shape}" for shape in _SHAPES[chip.dimensions].split())
    return next((one for one in named if dataclasses.replace(chip, topology=one).slice_devices == devices), None)


def _named(mesh: Any, ranks: int) -> Mesh:
    """A user's mesh.

    Raises:
        TpuLoweringError: TL112.
    """
    if not isinstance(mesh, DeviceMesh):
        raise errors.wrong_argument(
            "mesh", f"a DeviceMesh of torch.distributed, got {type(mesh).__name__}",
            'with tpu_lowering.fake_mesh({"data": 4, "model": 4}) as mesh: ...',
        )  # fmt: skip
    given = [int(rank) for rank in mesh.mesh.flatten().tolist()]
    if given != list(range(ranks)):
        raise errors.wrong_argument(
            "mesh", f"a mesh of all {ranks} ranks in order, got {given[:8]}",
            "pass the mesh that init_device_mesh made, not a part of it",
        )  # fmt: skip
    sizes = tuple(int(size) for size in mesh.mesh.shape)
    names = mesh.mesh_dim_names or tuple(f"dim_{at}" for at in range(len(sizes)))
    return Mesh(tuple(names), sizes, tuple(given))
