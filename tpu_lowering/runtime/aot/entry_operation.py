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
        bytes_source: where the bytes come from: "dma schedule" or "operands"; "body" for a loop.
        vmem_bytes: scoped VMEM, as the compiler states it.
        schedule_cycles: cycles of the compiler's simulated static schedule; None where it states none.
        times: how often a loop runs its body, of which all figures have that many; None if the program does not say,
            of it or of a loop in it: that one is counted once. 1 for anything else.
    """

    name: str
    opcode: str
    op_name: str
    hbm_bytes_read: int
    hbm_bytes_written: int
    bytes_source: str
    vmem_bytes: int
    schedule_cycles: int | None
    times: int | None = 1
