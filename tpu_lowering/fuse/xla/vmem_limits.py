"""How much of VMEM a kernel asks for. XLA keeps that much free while the kernel runs, whether it uses it or not."""

from __future__ import annotations

from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.ir.chips import Chip

LEAST = 16 << 20
"""Bytes that XLA gives each operation of its own, on the chip where it gives the fewest."""
BLOCKS_IN_LEAST = 2 * LEAST // 3
"""Bytes that blocks, and all that is computed of them, may take in a kernel that asks for no more than ``LEAST``."""


def kernel_bytes(chip: Chip) -> int:
    """Bytes that a kernel may ask for."""
    return int(HEURISTICS.kernel_share * chip.vmem_bytes)


def asked(held: int, chip: Chip) -> int | None:
    """Bytes that a kernel asks for whose blocks, and all that is computed of them, take ``held``. The compiler adds to
    that: the kernel asks for half more. None where that is no more than it has without asking."""
    needed = 3 * held // 2
    return min(kernel_bytes(chip), needed) if needed > LEAST else None
