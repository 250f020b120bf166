"""TPUs that programs can be compiled for, and the figures used to turn bytes into time."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tpu_lowering import compat, errors

# The smallest slice of each chip that libtpu describes; a program for one device is the same on all of them.
TOPOLOGIES: dict[str, str] = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}

# What JAX calls one device of each chip.
DEVICE_KINDS: dict[str, str] = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}

MXUS = 4
"""Matrix units of a core, by libtpu's schedule of a bfloat16 product of 8192 cubed: 491,111 operations a cycle on tpu7x
and 473,655 on v6e, where four units of 256 by 256 make at most 2 * 4 * 256**2, or 524,288."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A TPU to compile for.

    Attributes:
        chip: a key of ``TOPOLOGIES``.
        topology: libtpu's name of a slice, such as ``v5e:2x4``.
        device_kind: JAX's name of one device.
        hbm_bytes_per_second: HBM bandwidth of one device, from JAX's table of TPUs
            (``jax._src.pallas.mosaic.tpu_info``); on tpu7x a device is one of a chip's two cores.
        vmem_bytes: VMEM of one core, from the same table.
    """

    chip: str
    topology: str
    device_kind: str
    hbm_bytes_per_second: float
    vmem_bytes: int

    @property
    def cycles_per_second(self) -> float:
        """Clock of one core: the bfloat16 operations a second of JAX's table over those a cycle; see ``MXUS``. JAX has
        no table of clocks."""
        info = compat.tpu_info(self.device_kind)
        return info.bf16_ops_per_second / (2 * MXUS * info.mxu_column_size**2)

    @staticmethod
    def of(name: str) -> Target:
        """A target by its name: a chip, ``"tpu7x"``, or a topology, ``"v5e:2x4"``.

        Raises:
            TpuLoweringError: TL107 for a name that is neither.
        """
        given: Any = name
        chip, _, shape = name.partition(":") if isinstance(given, str) else ("", "", "")
        if chip not in TOPOLOGIES or (shape and not re.fullmatch(r"\d+(x\d+){1,2}", shape)):
            raise errors.refuse(
                "TL107",
                repr(name),
                f"expected one of {', '.join(TOPOLOGIES)}, or a topology such as 'v5e:2x4', got {name!r}",
                'write target="tpu7x"',
            )
        info = compat.tpu_info(DEVICE_KINDS[chip])
        return Target(
            chip,
            name if shape else TOPOLOGIES[chip],
            DEVICE_KINDS[chip],
            float(info.mem_bw_bytes_per_second),
            int(info.vmem_capacity_bytes),
        )

    @staticmethod
    def of_kind(device_kind: str) -> Target:
        """The target whose devices JAX calls so."""
        return Target.of(next(chip for chip, kind in DEVICE_KINDS.items() if kind == device_kind))
