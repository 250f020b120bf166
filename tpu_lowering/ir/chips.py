"""What a chip is: one frozen value for each TPU that programs can be compiled for, and one for the CPU.

``find`` takes any name that a user may write, ``of_device`` what a library calls the device that is there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence

from tpu_lowering import errors, offenders

LANES, SUBLANES = 128, 8
"""Elements of 32 bits along the two dimensions of a vector register, on every TPU."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU, or the CPU.

    Figures are those of JAX's ``pltpu.get_tpu_info`` for one device; on tpu7x a device is one of a chip's two cores.

    Attributes:
        name: ours, and libtpu's in topologies.
        device_kinds: what JAX calls one device, in each of its spellings; what libtpu's devices are called is first.
        other_names: what else it is called: by torch_tpu, by Google Cloud.
        topology: libtpu's name of a slice, such as ``v5e:2x4``; "" for the CPU. The smallest that libtpu describes,
            unless ``find`` was given another; a program for one device is the same on all of them.
        hbm_bytes_per_second: HBM bandwidth of one core.
        bf16_ops_per_second: bfloat16 operations of its matrix units.
        vmem_bytes: VMEM of one core.
        smem_bytes: SMEM of one core.
        mxu_size: rows, and columns, of a matrix unit.
        mxus: matrix units of a core. JAX's table has no such figure. libtpu schedules a bfloat16 product of 8192 cubed
            with 491,111 operations a cycle on tpu7x and 473,655 on v6e; four units of 256 by 256 make at most
            2 * 4 * 256**2, or 524,288. For the others four give the
            clocks that are published, 1.05, 1.5 and 1.75 GHz.
        devices: libtpu's devices of one chip: two where each of its cores is one.
        hbm_bytes: HBM of one device, as Google Cloud's pages give it for a chip: 32, 16, 95, 32 and 192 GiB.
        link_bytes_per_second: of one link between chips, in one direction; None where it is not known. Google Cloud's
            pages on v5e, v5p, v6e and tpu7x give both directions of all links of a chip: 400, 1,200, 800 and 1,200 GB
            a second, over 4 links in a torus of two dimensions, and 6 in one of three. The page on v4 gives none.
        cores: of one device. JAX's figures are for one core.
        has_sparse_cores: whether XLA gives gathers to SparseCores. v5e has none: tables are fetched into VMEM there.
    """

    name: str
    device_kinds: tuple[str, ...]
    other_names: tuple[str, ...]
    topology: str
    hbm_bytes_per_second: float
    bf16_ops_per_second: float
    vmem_bytes: int
    smem_bytes: int
    mxu_size: int
    mxus: int
    devices: int
    hbm_bytes: int
    link_bytes_per_second: float | None
    cores: int = 1
    has_sparse_cores: bool = True

    @property
    def device_bytes_per_second(self) -> float:
        """HBM bandwidth of all cores of one device."""
        return self.hbm_bytes_per_second * self.cores

    @property
    def slice_devices(self) -> int:
        """How many devices its topology has."""
        return self.devices * math.prod(int(size) for size in self.topology.partition(":")[2].split("x"))

    @property
    def dimensions(self) -> int:
        """Of its torus: a chip has two links along each."""
        return self.topology.count("x", self.topology.find(":")) + 1

    @property
    def is_tpu(self) -> bool:
        return self.name != "cpu"

    @property
    def device_kind(self) -> str:
        """What JAX is told when a kernel asks for facts of the chip."""
        return self.device_kinds[0]

    @property
    def cycles_per_second(self) -> float:
        """Clock of one core: its bfloat16 operations a second over those a cycle. JAX has no table of clocks."""
        return self.bf16_ops_per_second / (2 * self.mxus * self.mxu_size**2)


MIB, GIB = 2**20, 2**30
CHIPS = (
    Chip(
        "v4", ("TPU v4",), ("ct4p",), "v4:2x2x1",
        6.15e11, 1.375e14, 16 * MIB, MIB, 128, 4, 2, 16 * GIB, None,
    ),
    Chip(
        "v5e", ("TPU v5 lite", "TPU v5e"), ("ct5lp",), "v5e:2x2",
        8.2e11, 1.97e14, 128 * MIB, MIB, 128, 4, 1, 16 * GIB, 5e10, has_sparse_cores=False,
    ),
    Chip(
        "v5p", ("TPU v5", "TPU v5p"), ("ct5p",), "v5p:2x2x1",
        1.23e12, 2.295e14, 64 * MIB, MIB, 128, 4, 1, 95 * GIB, 1e11, 2,
    ),
    Chip(
        "v6e", ("TPU v6 lite", "TPU v6e"), ("trillium", "ct6e"), "v6e:2x2",
        1.64e12, 9.2e14, 128 * MIB, MIB, 256, 4, 1, 32 * GIB, 1e11,
    ),
    Chip(
        "tpu7x", ("TPU7x",), ("TPU v7", "TPU v7x", "ironwood"), "tpu7x:2x2x1",
        3.7e12, 1.155e15, 64 * MIB, MIB, 256, 4, 2, 96 * GIB, 1e11,
    ),
)  # fmt: skip
"""Every TPU, in the order of their generations."""

TPU7X = next(chip for chip in CHIPS if chip.name == "tpu7x")
CPU = dataclasses.replace(TPU7X, name="cpu", topology="")
"""No TPU. Kernels run on it to be tested: planned for the memory of a tpu7x, and traced with the facts of one."""


def _key(name: str) -> str:
    """A name without what people write in different ways: case, dashes, "TPU", and the slice it may be part of."""
    plain = re.sub(r"-\d+$", "", name.strip().lower())
    return re.fullmatch(r"(?:tpu)?(.*?)(?:pod)?(?:slice)?", re.sub(r"[^a-z0-9]", "", plain))[1]  # type: ignore[index]


def by_key(chips: Sequence[Chip]) -> dict[str, Chip]:
    """Chips by the plain forms of all their names.

    Raises:
        ValueError: for a name of two chips.
    """
    found: dict[str, Chip] = {}
    for chip in chips:
        for name in (chip.name, *chip.device_kinds, *chip.other_names):
            other = found.setdefault(_key(name), chip)
            if other is not chip:
                raise ValueError(f"expected {name!r} to be a name of one chip, got {other.name} and {chip.name}")
    return found


_BY_KEY = by_key(CHIPS)


def find(name: str) -> Chip:
    """The TPU of a name that a user may write: "tpu7x", "TPU v5 lite", "v5litepod-4", "ironwood"; or with a topology,
    "v5e:2x4".

    Raises:
        TpuLoweringError: TL107 for a name that is none, with the nearest.
    """
    text = name if isinstance(name, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
    written, colon, shape = text.partition(":")
    chip = _BY_KEY.get(_key(written))
    if chip is not None and re.fullmatch(r"\d+(x\d+){1,2}", shape):
        return dataclasses.replace(chip, topology=f"{chip.name}:{shape}")
    if chip is not None and not colon:
        return chip
    near = _BY_KEY[difflib.get_close_matches(_key(written), _BY_KEY, n=1, cutoff=0.0)[0]]
    raise errors.refuse(
        "TL107",
        offenders.shown(name),
        f"expected one of {_names()}, or a topology such as 'v5e:2x4', got {offenders.shown(name)}",
        f'write target="{near.topology if chip is near else near.name}"',
    )


def of_device(kind: str, library: str) -> Chip:
    """The TPU that a library has found on this machine.

    Args:
        kind: what the library calls it.
        library: whose name it is.

    Raises:
        TpuLoweringError: TL104 for one that is none of ``CHIPS``, or no TPU.
    """
    chip = _BY_KEY.get(_key(kind))
    if chip is None:
        raise errors.refuse(
            "TL104",
            f"{library} on {kind}",
            f"expected this machine to have one of {_names()}, got {kind}",
            "run it on a machine that has one; without one, compile it with tpu_lowering.aot_compile",
        )
    return chip


def _names() -> str:
    return ", ".join(chip.name for chip in CHIPS)
