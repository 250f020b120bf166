"""``EntryOperation``: one operation of a compiled program, and what it moves."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EntryOperation:
    """One operation that the device executes.

    Attributes:
        name: its name in the optimised HLO.
        opcode: HLO opcode; custom calls with their target.
        op_name: where it comes from, in JAX's name scopes: the user's source line is part of it.
        hbm_bytes_read: HBM bytes it reads.
        hbm_bytes_written: HBM bytes it writes.
        bytes_source: "dma schedule" or "operands", where the bytes come from.
        vmem_bytes: scoped VMEM, as the compiler states it.
        schedule_cycles: cycles of the compiler's simulated static schedule; None where it states none.
    """

    name: str
    opcode: str
    op_name: str
    hbm_bytes_read: int
    hbm_bytes_written: int
    bytes_source: str
    vmem_bytes: int
    schedule_cycles: int | None
