"""Cycles of generated kernels beside XLA's: what they come to in time, and which are more."""

from __future__ import annotations

from bench.markdown import microseconds
from tpu_lowering.fuse.choose.choices import Score
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip

ALLOWED = 1.10
"""Of XLA's cycles, what a kernel may take before it is listed."""


def exception(target: str, case: str, alone: Score, fused: Score) -> str:
    """A line about a case whose kernels take more cycles than allowed, or ""; also where a form states no cycles."""
    if not alone.cycles or not fused.cycles or fused.cycles <= ALLOWED * alone.cycles:
        return ""
    chip = chips.find(target)
    verdict = "no less time" if fused.seconds(chip) >= alone.seconds(chip) else "less time all the same"
    return (
        f"- {target}, {case}: {fused.cycles / alone.cycles:.2f} of the cycles, {verdict}: at least "
        f"{_least(fused, chip)}, XLA's form {_least(alone, chip)}.\n"
    )


def _least(score: Score, chip: Chip) -> str:
    """The least time that a run can take, and what says so."""
    seconds = score.seconds(chip)
    bound = "bytes" if seconds == score.hbm_bytes / chip.hbm_bytes_per_second else "cycles"
    return f"{microseconds(seconds)} us by its {bound}"
