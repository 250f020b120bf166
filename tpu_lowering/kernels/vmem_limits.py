"""How much of VMEM a kernel asks for. XLA keeps that much free while the kernel runs, whether it uses it or not."""

from __future__ import annotations

LEAST = 16 << 20
"""Bytes that XLA gives each operation of its own, on the chip where it gives the fewest."""


def asked(held: int, most: int) -> int:
    """Bytes that a kernel asks for whose blocks, and all that is computed of them, take ``held``; never more than
    ``most``. Half of ``held`` is added, for what the compiler adds."""
    return min(most, max(LEAST, 3 * held // 2))
