"""What a compiled program says of its fusion: what a report for the chip says, in the same words, in its file too."""

from __future__ import annotations

import pathlib

import pytest
import torch
import torch.nn.functional as F

import tpu_lowering
from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot.compiler import Compiled

pytest.importorskip("libtpu")


def both(q: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in float16, which no kernel takes, and rows that one does."""
    return F.scaled_dot_product_attention(q, q, q), torch.softmax(x, -1)


ARGS = (torch.empty(2, 4, 512, 128, dtype=torch.float16), torch.empty(1024, 1024))


def test_a_program_says_what_a_report_says(tmp_path: pathlib.Path) -> None:
    program = tpu_lowering.aot_compile(both, ARGS, target="v5e")
    report = tpu_lowering.explain(both, *ARGS, target="v5e")
    for name in ("fused", "unfused", "launched"):
        ours, theirs = getattr(program, name), getattr(report, name)
        assert [(one.code, one.reason, one.remedy, one.where) for one in ours] == [
            (one.code, one.reason, one.remedy, one.where) for one in theirs
        ]
    (fused,), (unfused,) = program.fused, program.unfused
    assert fused.where.startswith("test_remarks.py:21 in both: ") and not fused.code
    assert unfused.code == "TL521" and "got f16" in unfused.reason and unfused.remedy
    assert {one.program for one in (fused, unfused)} == {program.name}
    program.save(tmp_path / "program.tpu")
    loaded = tpu_lowering.load(tmp_path / "program.tpu")
    assert (loaded.fused, loaded.unfused) == (program.fused, program.unfused)


def test_the_form_without_kernels_says_what_the_other_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either form the words are those of the form with kernels, and ``fusion`` says which was taken."""
    chip = chips.find("v5e")
    refuse = tpu_lowering.errors.refuse("TL601", "softmax", "expected at most 64 MiB, got 65", "smaller blocks")
    compile_ = aot.compiler.compile_artifact

    def refusing(artifact: bytes, *given: object, **others: object) -> Compiled:
        if aot.compiler.holds_kernel(artifact):
            raise refuse
        return compile_(artifact, *given, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(aot.compiler, "compile_artifact", refusing)
    program = tpu_lowering.aot_compile(lambda x: torch.softmax(x, -1), ARGS[1:], target=chip.name)
    assert program.fusion.startswith("without generated kernels: TL601") and not program.vmem_bytes
    assert len(program.fused) == 1 and program.unfused == ()
