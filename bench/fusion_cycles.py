"""Cycles of generated kernels beside XLA's: what they come to in time, and which are more."""

from __future__ import annotations

import dataclasses

from bench.markdown import microseconds
from tpu_lowering.runtime.aot.targets import Target

ALLOWED = 1.10
"""Of XLA's cycles, what a kernel may take before it is listed."""


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of a case.

    Attributes:
        nbytes: HBM bytes, read and written.
        cycles: of its static schedule.
    """

    nbytes: int
    cycles: int

    def least(self, target: str) -> tuple[float, str]:
        """The least seconds that a run can take, the larger of bytes over bandwidth and cycles over clock, and which
        of the two it is."""
        chip = Target.of(target)
        by_bytes, by_cycles = self.nbytes / chip.hbm_bytes_per_second, self.cycles / chip.cycles_per_second
        return (by_bytes, "bytes") if by_bytes >= by_cycles else (by_cycles, "cycles")


def exception(target: str, case: str, alone: Form, fused: Form) -> str:
    """A line about a case whose kernels take more cycles than allowed; "" for any other."""
    if fused.cycles <= ALLOWED * alone.cycles:
        return ""
    (by_xla, bound), (with_kernels, other) = alone.least(target), fused.least(target)
    verdict = "no less time" if with_kernels >= by_xla else "less time all the same"
    return (
        f"- {target}, {case}: {fused.cycles / alone.cycles:.2f} of the cycles, {verdict}: at least "
        f"{microseconds(with_kernels)} us by its {other}, XLA's form {microseconds(by_xla)} us by its {bound}.\n"
    )
