"""The compiler's static schedule as a timeline: Chrome's trace event format, which Perfetto shows.

Nothing in it was measured. An operation lasts as long as its simulated cycles at the chip's clock; one for which the
compiler states no cycles, as long as its bytes take at the chip's HBM bandwidth, which is no time where all of them are
in VMEM: it is on a track whose name says so. Operations follow each other. An asynchronous copy runs beside them, from
its beginning to its end, which waits for its bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tpu_lowering import errors
from tpu_lowering.ir.chips import Chip
from tpu_lowering.runtime.aot import hlo
from tpu_lowering.runtime.aot.entry_operation import EntryOperation

COMPUTE, DMA, OTHERS = 1, 2, 3
"""Threads of the trace: operations of XLA, asynchronous copies, and from there on one for each further track."""

NO_CYCLES = ", no cycles from the compiler: widths are bytes over the HBM bandwidth"
"""What is behind the name of a track of operations that the compiler states no cycles for."""

SIMULATED = (
    "Simulated by the TPU compiler, not measured. Times are simulated cycles over the chip's clock; where it states no "
    "cycles, bytes over the HBM bandwidth."
)

_LINE = re.compile(r"[^/\s:]+:\d+(?=/|$)|module(?: [\w.]+)? \(\w+\)")
_NUMBER = re.compile(r"(\.\d+)+$")


class Scheduled(Protocol):
    """What a timeline is made of: a ``TpuProgram``, for the meaning of whose attributes see there."""

    @property
    def name(self) -> str: ...
    @property
    def chip(self) -> Chip: ...
    @property
    def hlo(self) -> str: ...
    @property
    def entry_operations(self) -> tuple[EntryOperation, ...]: ...


@dataclasses.dataclass(frozen=True)
class Event:
    """One operation on the timeline.

    Attributes:
        name: what it is and the user's source line: ``mul model.py:12``.
        track: name of the track it is on.
        thread: the track's number.
        start, microseconds: when, and how long, in simulated microseconds.
        facts: what else is known of it.
    """

    name: str
    track: str
    thread: int
    start: float
    microseconds: float
    facts: Mapping[str, Any]


def source_line(op_name: str) -> str:
    """The user's source line in JAX's name scopes, ``model.py:12``, or the module; "" where there is none."""
    found = _LINE.findall(op_name)
    return found[-1] if found else ""


def kernel_name(name: str) -> str:
    """The name that all calls of a kernel have in optimised HLO."""
    return _NUMBER.sub("", name)


def called(operation: EntryOperation) -> str:
    """What an operation is: a kernel's name, or JAX's operation."""
    if operation.opcode == hlo.KERNEL:
        return kernel_name(operation.name)
    return operation.op_name.rpartition("/")[2] or operation.opcode


def events(program: Scheduled, start: float = 0.0) -> list[Event]:
    """The timeline of a program, which begins at ``start`` microseconds."""
    known = {operation.name: operation for operation in program.entry_operations}
    threads: dict[str, int] = {"compute": COMPUTE}
    found: list[Event] = []
    open_: dict[str, float] = {}  # when the bytes of each asynchronous copy are there
    now = start
    entry = hlo.Module.of(program.hlo).entry
    lines = source_lines(entry)
    for operation in entry:
        if operation.opcode.endswith(("-done", "-update")):
            now = max([now, *(open_.get(name, now) for name in operation.operands)])
        moved = known.get(operation.name)
        if moved is None:
            continue
        line = lines[operation.name]
        if operation.opcode.endswith("-start"):
            microseconds = _of_bytes(moved, program.chip)
            open_[operation.name] = now + microseconds
            what = " ".join([operation.opcode.removesuffix("-start"), *operation.operands[:1], line])
            facts = _facts(moved, line, "bytes over bandwidth")
            found.append(Event(what.strip(), "DMA", DMA, now, microseconds, facts))
            continue
        microseconds, source = _duration(moved, program.chip)
        what = called(moved)
        track = f"kernel {what}" if operation.is_kernel else "compute"
        track += "" if moved.schedule_cycles is not None else NO_CYCLES
        thread = threads.setdefault(track, OTHERS + len(threads) - 1)
        facts = _facts(moved, line, source)
        found.append(Event(f"{what} {line}".strip(), track, thread, now, microseconds, facts))
        now += microseconds
    return found


def write(path: str | os.PathLike[str], programs: Sequence[Scheduled]) -> None:
    """Writes the timelines of programs that run one after the other, each as a process of the trace.

    Raises:
        TpuLoweringError: TL112 if there cannot be such a file.
    """
    rows: list[dict[str, Any]] = []
    now = 0.0
    for number, program in enumerate(programs, 1):
        timeline = events(program, now)
        now = max([now, *(event.start + event.microseconds for event in timeline)])
        rows += _names(program, number, timeline)
        rows += [_row(event, number) for event in timeline]
    chip = programs[0].chip
    about = {"about": SIMULATED, "chip": chip.name, "clock_hz": chip.cycles_per_second}
    text = json.dumps({"traceEvents": rows, "displayTimeUnit": "ns", "otherData": about})
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        got = f"a file that can be written, got {str(path)!r}: {error.strerror}"
        raise errors.wrong_argument("path", got, 'program.trace("program.json")') from error


def _of_bytes(entry: EntryOperation, chip: Chip) -> float:
    return (entry.hbm_bytes_read + entry.hbm_bytes_written) / chip.device_bytes_per_second * 1e6


def _duration(entry: EntryOperation, chip: Chip) -> tuple[float, str]:
    if entry.schedule_cycles is None:
        return _of_bytes(entry, chip), "bytes over bandwidth"
    return entry.schedule_cycles / chip.cycles_per_second * 1e6, "simulated cycles"


def source_lines(entry: Sequence[hlo.Operation]) -> dict[str, str]:
    """The user's source line of each operation; of one that the compiler added, that of what uses its result."""
    lines: dict[str, str] = {}
    for operation in reversed(entry):
        own = source_line(operation.op_name) or lines.get(operation.name, "")
        lines[operation.name] = own
        for operand in operation.operands:
            lines[operand] = own  # of the first that uses it, which comes last here
    return lines


def _facts(entry: EntryOperation, line: str, source: str) -> dict[str, Any]:
    return {
        "hlo": entry.name,
        "opcode": entry.opcode,
        "source_line": line,
        "hbm_bytes_read": entry.hbm_bytes_read,
        "hbm_bytes_written": entry.hbm_bytes_written,
        "vmem_bytes": entry.vmem_bytes,
        "cycles": entry.schedule_cycles,
        "time": f"simulated: {source}",
    }


def _names(program: Scheduled, process: int, timeline: Sequence[Event]) -> list[dict[str, Any]]:
    """The metadata events of a program: what the process and its threads are called, and their order."""
    tracks = {COMPUTE: "compute", DMA: "DMA"} | {event.thread: event.track for event in timeline}
    named: list[tuple[str, int, dict[str, Any]]] = [
        ("process_name", 0, {"name": f"{program.name} on {program.chip.name} (simulated)"})
    ]
    for thread, track in tracks.items():
        named += [("thread_name", thread, {"name": track}), ("thread_sort_index", thread, {"sort_index": thread})]
    return [{"ph": "M", "name": name, "pid": process, "tid": tid, "args": args} for name, tid, args in named]


def _row(event: Event, process: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": event.name,
        "cat": re.split(r"\W", event.track)[0],
        "pid": process,
        "tid": event.thread,
        "ts": round(event.start, 6),
        "dur": round(event.microseconds, 6),
        "args": event.facts,
    }
