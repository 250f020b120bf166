"""The figures of one task: what the compiler says of its programs, added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpu_lowering.runtime.aot import hlo
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.traffic import traffic_by_operands

MIB = 1 << 20
KERNEL = "custom-call:tpu_custom_call"

PREFETCHES = frozenset(("copy-start", "slice-start", "dynamic-slice-start"))
"""Copies that run while other operations do; they take no cycles of those."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What libtpu's compiler says of the programs of a task. Nothing in it was measured on a TPU.

    Attributes:
        hbm_bytes, hbm_bytes_read, hbm_bytes_written: HBM traffic of all programs, kernels by the compiler's DMA
            schedule where it lists every copy, everything else by operands and results.
        operand_bytes: the same by operands and results alone, each counted once: a lower bound for kernels.
        kernels_by_operands: kernels whose DMA schedule was missing or incomplete, so that ``hbm_bytes`` has the
            lower bound for them.
        device_operations: entry operations that move bytes.
        opcodes: their opcodes, program after program, in the order of the schedule.
        programs: how many programs run one after the other.
        peak_bytes: the largest peak of the compiler's memory plans; see ``TpuProgram``.
        vmem: the most scoped VMEM that one kernel uses, in bytes; 0 without kernels.
        schedule_cycles: simulated static schedule of all operations that state one; None where none does.
        unscheduled_bytes: HBM bytes of the operations that state none though they take the chip's time: plain copies,
            and what the compiler had not written when its simulation gave up; not what is fetched beside other work.
        kernel_cycles: the same of the Mosaic kernels alone; 0 without kernels.
        bandwidth_bound_seconds: ``hbm_bytes`` over the HBM bandwidth of one device.
    """

    hbm_bytes: int
    hbm_bytes_read: int
    hbm_bytes_written: int
    operand_bytes: int
    kernels_by_operands: int
    device_operations: int
    opcodes: tuple[str, ...]
    programs: int
    peak_bytes: int
    vmem: int
    schedule_cycles: int | None
    unscheduled_bytes: int
    kernel_cycles: int | None
    bandwidth_bound_seconds: float

    @staticmethod
    def of(programs: Sequence[TpuProgram]) -> Figures:
        """Adds up programs that run one after the other; peak and VMEM are the largest."""
        operations = [operation for program in programs for operation in program.entry_operations]
        kernels = [operation for operation in operations if operation.opcode == KERNEL]
        return Figures(
            hbm_bytes=sum(program.hbm_bytes for program in programs),
            hbm_bytes_read=sum(program.hbm_bytes_read for program in programs),
            hbm_bytes_written=sum(program.hbm_bytes_written for program in programs),
            operand_bytes=sum(operand_bytes(program) for program in programs),
            kernels_by_operands=sum(kernel.bytes_source == "operands" for kernel in kernels),
            device_operations=len(operations),
            opcodes=tuple(operation.opcode for operation in operations),
            programs=len(programs),
            peak_bytes=max((program.peak_bytes for program in programs), default=0),
            vmem=max((kernel.vmem_bytes for kernel in kernels), default=0),
            schedule_cycles=sum(o.schedule_cycles or 0 for o in operations) or None,
            unscheduled_bytes=sum(
                o.hbm_bytes_read + o.hbm_bytes_written
                for o in operations
                if o.schedule_cycles is None and o.opcode not in PREFETCHES
            ),
            kernel_cycles=total([kernel.schedule_cycles for kernel in kernels]),
            bandwidth_bound_seconds=sum(program.bandwidth_bound_seconds for program in programs),
        )

    def as_entry(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**dataclasses.asdict(self), "opcodes": list(self.opcodes)}


def total(parts: Sequence[int | None]) -> int | None:
    """A sum; None if a part is missing."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def operand_bytes(program: TpuProgram) -> int:
    """HBM bytes of a program by operands and results, each once."""
    return sum(traffic.total for traffic in traffic_by_operands(hlo.Module.of(program.hlo)).values())


def copies_of(program: TpuProgram, shape: Sequence[int]) -> int:
    """How many entry operations of a program copy an array of a shape within HBM."""
    copied = (
        operation
        for operation in hlo.Module.of(program.hlo).entry
        if operation.opcode in ("copy", "copy-start")
        and operation.results
        and operation.results[0].shape == tuple(shape)
        and operation.results[0].memory_space == 0
    )
    return sum(1 for _ in copied)
