"""How much of VMEM a kernel asks for. XLA keeps that much free while the kernel runs, whether it uses it or not."""

from __future__ import annotations

from tpu_lowering.fuse.xla.heuristics import HEURISTICS
from tpu_lowering.ir.chips import Chip


def most_of(chip: Chip) -> int:
    """Bytes that the largest kernel may ask for."""
    return int(HEURISTICS.kernel_share * chip.vmem_bytes)


def asked(held: int, chip: Chip) -> int:
    """Bytes that a kernel asks for whose blocks, and values between them, take ``held``. The compiler adds temporaries
    of its own: up to a quarter in the kernels of whole models. No operation of XLA's gets less than ``least_vmem``."""
    return min(most_of(chip), max(HEURISTICS.least_vmem, 3 * held // 2))
