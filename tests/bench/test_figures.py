"""Figures of HLO texts: what counts as traffic between HBM and VMEM, and what as a copy."""

from __future__ import annotations

import types

from bench.figures import Figures, copies_of, operand_bytes, total
from tpu_lowering.runtime.aot.program import EntryOperation

HLO = """\
HloModule jit_step, is_scheduled=true

%row (param_0: f32[64,128], param_1: s32[]) -> f32[1,128] {
  %param_0 = f32[64,128]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %taken = f32[1,128]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,128}
}

ENTRY %main (cache: f32[64,128], i: s32[]) -> f32[1,128] {
  %cache = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %fetch = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%cache)
  %fetched = f32[64,128]{1,0:S(1)} copy-done(%fetch)
  %part = ((f32[64,128]{1,0}), f32[16,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%cache), slice={[0:16], [0:128]}
  %parted = f32[16,128]{1,0:S(1)} slice-done(%part)
  %joined = f32[64,128]{1,0:S(1)} custom-call(%parted, %parted), custom_call_target="ConcatBitcast"
  %kept = f32[64,128]{1,0} copy(%joined)
  ROOT %out = f32[1,128]{1,0} fusion(%cache, %i), kind=kLoop, calls=%row
}
"""
ROW = 128 * 4


def program() -> types.SimpleNamespace:
    return types.SimpleNamespace(hlo=HLO)


def test_prefetches_write_no_hbm_and_slices_read_what_they_take() -> None:
    fetch, part, kept, out = 64 * ROW, 16 * ROW, 64 * ROW, 2 * ROW + 4
    assert operand_bytes(program()) == fetch + part + kept + out


def test_a_copy_within_hbm_is_one_that_ends_there() -> None:
    assert copies_of(program(), (64, 128)) == 1
    assert copies_of(program(), (16, 128)) == 0


def test_a_total_with_a_gap_is_none() -> None:
    assert total([1, 2]) == 3
    assert total([1, None]) is None
    assert total([]) == 0


def test_what_is_fetched_beside_other_work_needs_no_cycles() -> None:
    def operation(opcode: str, cycles: int | None) -> EntryOperation:
        return EntryOperation("", opcode, "", 100, 0, "operands", 0, cycles)

    operations = operation("fusion", 7), operation("copy-start", None), operation("copy", None)
    made = types.SimpleNamespace(
        hlo=HLO, entry_operations=operations, hbm_bytes=300, hbm_bytes_read=300, hbm_bytes_written=0, peak_bytes=0,
        bandwidth_bound_seconds=0.0,
    )  # fmt: skip
    found = Figures.of([made])  # type: ignore[list-item]
    assert (found.schedule_cycles, found.unscheduled_bytes) == (7, 100)
