"""Timelines of static schedules, by the fields of the trace event format; and what a program prints as."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

import tpu_lowering
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import trace
from tpu_lowering.runtime.aot.program import EntryOperation, TpuProgram
from tpu_lowering.runtime.aot.step import TpuStep

CHIP = chips.TPU7X
HLO = """HloModule m

ENTRY %main (a: f32[8,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} parameter(1)
  %copy-start = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]) copy-start(%b)
  %fusion.3 = f32[8,128]{1,0} fusion(%a), kind=kLoop, calls=%f, metadata={op_name="jit(f)/model.py:12/mul"}
  %copy-done = f32[8,128]{1,0:S(1)} copy-done(%copy-start)
  %exp_into.7 = f32[8,128]{1,0} custom-call(%fusion.3, %copy-done), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/model.py:13/exp_into"}
  ROOT %exp_into.8 = f32[8,128]{1,0} custom-call(%exp_into.7), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/model.py:13/exp_into"}
}
"""
KERNEL = "custom-call:tpu_custom_call"
SCOPE = "jit(f)/model.py:13/exp_into"
COPIED = 1 << 30
OPERATIONS = (
    EntryOperation("copy-start", "copy-start", "", COPIED, 0, "operands", 0, None),
    EntryOperation("fusion.3", "fusion", "jit(f)/model.py:12/mul", 4096, 4096, "operands", 0, None),
    EntryOperation("exp_into.7", KERNEL, SCOPE, 4096, 4096, "dma schedule", 64, 2000),
    EntryOperation("exp_into.8", KERNEL, SCOPE, 4096, 4096, "dma schedule", 64, 3000),
)
PROGRAM = TpuProgram("inference_0", CHIP, HLO, OPERATIONS, 8192, 4096, 4096, 0, 16384, b"a" * 400_000, b"", "")
PHASES = {"X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}, "M": {"name", "ph", "pid", "tid", "args"}}


def traced(made: Any, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a trace, each with the fields that its phase has."""
    path = folder / "trace.json"
    made.trace(path)
    read = json.loads(path.read_text())
    assert "not measured" in read["otherData"]["about"]
    assert read["displayTimeUnit"] in ("ms", "ns")
    for event in read["traceEvents"]:
        assert set(event) == PHASES[event["ph"]]
        assert all(type(event[key]) is int for key in ("pid", "tid"))
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
    return read["traceEvents"]


def test_tracks_and_times(tmp_path: pathlib.Path) -> None:
    found = traced(PROGRAM, tmp_path)
    tracks = {event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"}
    assert tracks == {1: "compute", 2: "DMA", 3: f"compute{trace.NO_CYCLES}", 4: "kernel exp_into"}
    assert {event["cat"] for event in found if event["ph"] == "X"} == {"compute", "DMA", "kernel"}
    named = [(event["name"], tracks[event["tid"]]) for event in found if event["ph"] == "X"]
    assert named == [
        ("copy b model.py:13", "DMA"),
        ("mul model.py:12", f"compute{trace.NO_CYCLES}"),
        ("exp_into model.py:13", "kernel exp_into"),
        ("exp_into model.py:13", "kernel exp_into"),
    ]
    copy, multiply, first, second = (event for event in found if event["ph"] == "X")
    assert copy["ts"] == multiply["ts"] == 0.0
    assert copy["dur"] == pytest.approx(COPIED / CHIP.device_bytes_per_second * 1e6, abs=1e-5)
    assert first["ts"] == pytest.approx(copy["dur"])  # the end of the copy waits for its bytes
    assert first["dur"] == pytest.approx(2000 / CHIP.cycles_per_second * 1e6, abs=1e-5)
    assert second["ts"] == pytest.approx(first["ts"] + first["dur"], abs=1e-5)
    assert first["args"]["time"] == "simulated: simulated cycles"
    assert multiply["args"]["time"] == "simulated: bytes over bandwidth"
    assert multiply["args"]["source_line"] == "model.py:12"


def test_what_has_cycles_has_a_width_and_the_rest_says_why(tmp_path: pathlib.Path) -> None:
    """A product whose operands and result are in VMEM moves no HBM bytes."""
    inside = dataclasses.replace(OPERATIONS[1], hbm_bytes_read=0, hbm_bytes_written=0)
    tracks: list[str] = []
    for cycles, wide in ((None, False), (900, True)):
        operations = (OPERATIONS[0], dataclasses.replace(inside, schedule_cycles=cycles), *OPERATIONS[2:])
        found = traced(dataclasses.replace(PROGRAM, entry_operations=operations), tmp_path)
        names = {event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"}
        (product,) = (event for event in found if event["name"] == "mul model.py:12")
        assert (product["dur"] > 0) is wide
        tracks.append(names[product["tid"]])
    assert tracks == [f"compute{trace.NO_CYCLES}", "compute"]


def test_a_steps_backward_follows_its_forward(tmp_path: pathlib.Path) -> None:
    step = TpuStep(PROGRAM, dataclasses.replace(PROGRAM, name="backward_0"), (), 0, ())
    found = traced(step, tmp_path)
    processes = [event["args"]["name"] for event in found if event["name"] == "process_name"]
    assert processes == ["inference_0 on tpu7x (simulated)", "backward_0 on tpu7x (simulated)"]
    ends = max(event["ts"] + event["dur"] for event in found if event["ph"] == "X" and event["pid"] == 1)
    assert min(event["ts"] for event in found if event["ph"] == "X" and event["pid"] == 2) == pytest.approx(ends)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        PROGRAM.trace(tmp_path / "missing" / "trace.json")
    assert caught.value.code == "TL112"


def test_a_program_prints_as_a_line() -> None:
    whole = dataclasses.replace(PROGRAM, entry_operations=OPERATIONS[2:])
    text = "<TpuProgram inference_0 for tpu7x: 2 operations, 16,384 HBM bytes, 16,384 at peak, 5,000 cycles simulated>"
    assert repr(whole) == text
    assert len(repr(TpuStep(PROGRAM, PROGRAM, (), 0, ()))) < 300
