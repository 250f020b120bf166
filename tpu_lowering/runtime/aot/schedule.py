"""The static schedule that libtpu dumps: cycles of each operation, and every DMA it issues.

``<operation>_<chip>_static_llo_profile.textproto`` has the simulated cycles; ``<operation>_bundles.txt`` the
unrolled instruction bundles, with each copy's direction and its size in granules of 32 bytes. Neither was
measured on a chip: the simulation knows nothing of contention for HBM.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

from tpu_lowering.runtime.aot.traffic import Traffic

GRANULE = 32  # bytes; ``size_in_granules`` of the dump counts these

_CYCLES = re.compile(r"estimated_cycles: (\d+)")
_DMA = re.compile(rb"dma\.(hbm_to_\w+|\w+_to_hbm)\b[^\n]*?/\*size_in_granules=\*/(\d+)")


@dataclasses.dataclass(frozen=True)
class ScheduleDump:
    """What a dump says of a program.

    Attributes:
        cycles: simulated cycles by operation name.
        dma: HBM bytes by operation name; operations whose sizes the dump does not state are missing.
    """

    cycles: dict[str, int]
    dma: dict[str, Traffic]


def read_schedule(folder: pathlib.Path, whole: bool = True) -> ScheduleDump:
    """Reads a dump folder; an empty one gives an empty schedule.

    Args:
        folder: what libtpu wrote into.
        whole: whether it came to the end. If a check of its failed (it does, on packed bf16 values that are spilled:
            "Expected vector-bf16packed, got vector-int16"), cycles that it wrote before stand; bundles may be cut off.
    """
    cycles: dict[str, int] = {}
    for path in sorted(folder.glob("*_static_llo_profile.textproto")):
        found = _CYCLES.search(path.read_text())
        if found:
            name = path.name.removesuffix("_static_llo_profile.textproto").rpartition("_")[0]
            cycles[name] = int(found[1])
    if not whole:
        return ScheduleDump(cycles, {})
    dma = {path.name.removesuffix("_bundles.txt"): dma_of(path) for path in sorted(folder.glob("*_bundles.txt"))}
    return ScheduleDump(cycles, {name: found for name, found in dma.items() if found is not None})


def dma_of(path: pathlib.Path) -> Traffic | None:
    """Sums the copies of one dump; None if it has a copy whose size is not a constant."""
    read = written = 0
    for line in path.open("rb"):
        if b" = dma." not in line and b" dma.hbm_to" not in line and b"_to_hbm" not in line:
            continue
        found = _DMA.search(line)
        if found is None:
            if b"dma.hbm_to" in line or b"_to_hbm" in line:
                return None
            continue
        size = int(found[2]) * GRANULE
        if found[1].startswith(b"hbm_to"):
            read += size
        else:
            written += size
    return Traffic(read, written)
