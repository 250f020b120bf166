"""What a compiled program says of its fusion: what a report for the chip says, in the same words, in its file too."""

from __future__ import annotations

import pathlib
import re

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
    assert fused.where.startswith("test_remarks.py:22 in both: ") and not fused.code
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
    assert program.fusion.startswith("without softmax_rows: TL601") and not program.vmem_bytes
    assert len(program.fused) == 1 and program.unfused == ()


def rows_after_attention(q: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.scaled_dot_product_attention(q, q, q), torch.softmax(x, -1)


NARROW = (torch.empty(2, 4, 2048, 128, dtype=torch.bfloat16), torch.empty(8192, 1024))


def refuses(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[list[str]]:
    """Has the compiler refuse programs with one of these kernels; what was compiled is the list."""
    compiled, seen = aot.compile_captured, list[list[str]]()

    def refusing(captured: aot.Captured, *args: object) -> tpu_lowering.TpuProgram:
        seen.append(sorted(captured.source.kernels))
        if refused := set(names) & set(captured.source.kernels):
            raise tpu_lowering.errors.refuse("TL601", min(refused), "expected less, got more", "use less")
        return compiled(captured, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(aot, "compile_captured", refusing)
    return seen


def test_without_kernels_of_rows_attention_is_one_still(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = refuses(monkeypatch, "softmax_rows")
    program = tpu_lowering.aot_compile(rows_after_attention, NARROW, target="v5e")
    assert sorted(seen) == [["flash_attention"], ["flash_attention", "softmax_rows"]]
    assert program.fusion == "without softmax_rows: TL601, expected less, got more"


def test_without_any_kernel_where_both_forms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = refuses(monkeypatch, "flash_attention")
    program = tpu_lowering.aot_compile(rows_after_attention, NARROW, target="v5e")
    assert sorted(seen) == [[], ["flash_attention"], ["flash_attention", "softmax_rows"]]
    assert program.fusion == "without generated kernels: TL601, expected less, got more"
    assert not program.vmem_bytes and len(program.fused) == 2


def test_attention_alone_is_compared_with_its_operators() -> None:
    program = tpu_lowering.aot_compile(lambda q: F.scaled_dot_product_attention(q, q, q), NARROW[:1], target="v5e")
    assert re.fullmatch(r"[\d.]+ MiB with flash_attention, [\d.]+ MiB without; the form with is taken", program.fusion)


def test_passes_that_are_named_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = refuses(monkeypatch, "amax_sum_rows")
    options = {"passes": "expand_rows,fuse_rows"}
    program = tpu_lowering.aot_compile(lambda x: torch.softmax(x, -1), NARROW[1:], target="v5e", options=options)
    assert sorted(map(len, seen)) == [0, 1] and program.fusion.endswith("the form with is taken")
