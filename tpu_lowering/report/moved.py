"""``Moved``: the HBM bytes of one operation of a compiled program, and the source line that they are for."""

from __future__ import annotations

import dataclasses

from tpu_lowering.runtime.aot import hlo, trace
from tpu_lowering.runtime.aot.program import TpuProgram


@dataclasses.dataclass(frozen=True)
class Moved:
    """One operation that the device executes.

    Attributes:
        name: in the optimised HLO.
        text: what it is: a kernel's name, or JAX's operation.
        where: the user's source line, ``file.py:line``, or the module; "" where the compiler has lost it.
        read, written: HBM bytes.
        is_kernel: whether it is a Pallas kernel.
        cycles: of the simulated schedule; None where there are none.
    """

    name: str
    text: str
    where: str
    read: int
    written: int
    is_kernel: bool
    cycles: int | None

    @property
    def nbytes(self) -> int:
        return self.read + self.written


def moved_by(program: TpuProgram) -> tuple[Moved, ...]:
    """The operations of a program, in its order."""
    lines = trace.source_lines(hlo.Module.of(program.hlo).entry)
    return tuple(
        Moved(
            one.name,
            trace.called(one),
            lines.get(one.name, ""),
            one.hbm_bytes_read,
            one.hbm_bytes_written,
            one.opcode == hlo.KERNEL,
            one.schedule_cycles,
        )
        for one in program.entry_operations
    )
