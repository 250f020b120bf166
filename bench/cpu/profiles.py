"""Where the time of a model's forward goes: XLA's code for the CPU by kind of instruction, beside eager torch's."""

from __future__ import annotations

import collections
import dataclasses
import functools
import glob
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import torch
from jax.profiler import ProfileData

from bench import markdown, zoo
from bench.cpu import models, sides
from bench.cpu.goals import Entries, cases
from bench.cpu.timing import Local, interleave
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.programs import Program
from tpu_lowering.runtime.cpu import CpuProgram, CpuRuntime

CALLS = 10  # under the profiler
SLOWEST = 6  # instructions that are listed

PRODUCTS, CONVOLUTIONS, COPIES, OTHER = "matrix products", "convolutions", "copies", "elementwise"
BY_OPCODE = {
    "dot": PRODUCTS, "convolution": CONVOLUTIONS, "sort": "sorts", "gather": "gathers and scatters",
    "scatter": "gathers and scatters", "reduce": "reductions", "reduce-window": "reductions",
}  # fmt: skip
"""The first of these that an instruction or its computation contains gives its kind."""
MOVES = {
    "parameter", "constant", "copy", "transpose", "bitcast", "reshape", "broadcast", "concatenate", "pad", "slice",
    "dynamic-slice", "dynamic-update-slice", "fusion", "tuple", "get-tuple-element",
}  # fmt: skip
CONTAINERS = {"while", "call", "conditional"}  # the profile has their bodies' instructions too
KINDS = (PRODUCTS, CONVOLUTIONS, "reductions", "sorts", "gathers and scatters", COPIES, OTHER)

EAGER = {
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"), PRODUCTS),
    **dict.fromkeys(("aten::mkldnn_convolution", "aten::_slow_conv2d_forward"), CONVOLUTIONS),
    "aten::slow_conv_transpose2d": CONVOLUTIONS,
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention, one operator",
}  # fmt: skip

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|to_apply)=%([\w.-]+)")
NAMED = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of an optimised program: its kind, and the user's line with JAX's name of the operation."""

    kind: str
    source: str


def instructions_of(hlo: str) -> dict[str, Instruction]:
    """The instructions of a program in XLA's text form by name, without those that only run others."""
    lines: dict[str, tuple[str, str]] = {}
    inside: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for line in hlo.splitlines():
        if head := COMPUTATION.match(line):
            here = inside.setdefault(head[1], [])
        elif found := INSTRUCTION.match(line):
            lines[found[1]] = (found[2], line)
            here.append((found[2], line))

    def opcodes(opcode: str, line: str) -> set[str]:
        called = CALLED.findall(line) if opcode == "fusion" else []
        return {opcode}.union(*(opcodes(*each) for name in called for each in inside.get(name, [])))

    return {
        name: Instruction(kind_of(opcodes(opcode, line)), _source(line))
        for name, (opcode, line) in lines.items()
        if opcode not in CONTAINERS
    }


def kind_of(opcodes: Iterable[str]) -> str:
    """One of ``KINDS``, by the operations that an instruction is made of."""
    found = set(opcodes)
    listed = [kind for opcode, kind in BY_OPCODE.items() if opcode in found]
    return listed[0] if listed else COPIES if found <= MOVES else OTHER


def _source(line: str) -> str:
    named = NAMED.search(line)
    return "/".join(named[1].split("/")[1:]) if named else ""


def seconds_of(call: Callable[[], object]) -> dict[str, float]:
    """Seconds a call that JAX's profiler saw in each instruction, by name; threads are added up."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                call()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = ProfileData.from_file(path)
    found: collections.Counter[str] = collections.Counter()
    events = (event for plane in data.planes for line in plane.lines for event in line.events)
    for event in events:
        name = dict(event.stats).get("hlo_op")
        if name is not None:
            found[str(name)] += event.duration_ns
    return {name: nanoseconds / CALLS / 1e9 for name, nanoseconds in found.items()}


def eager_seconds_of(call: Callable[[], object]) -> dict[str, float]:
    """Seconds a call that torch's profiler saw in eager operators, by kind."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(CALLS):
            call()
    found: collections.Counter[str] = collections.Counter()
    for event in profile.key_averages():
        found[EAGER.get(event.key, "the rest")] += event.self_cpu_time_total
    return {kind: microseconds / CALLS / 1e6 for kind, microseconds in found.items()}


class _Kept(CpuRuntime):
    """The runtime for the CPU, which remembers what it compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[CpuProgram] = []

    def compile(self, program: Program, source: Source) -> CpuProgram:
        self.programs.append(super().compile(program, source))
        return self.programs[-1]


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The entry of one model: seconds a call, and where they go.

    Raises:
        ValueError: it is more than one program.
    """
    chosen, runtime = zoo.MODELS[name], _Kept()
    torch.manual_seed(0)
    arguments = (chosen, models.enlarge(chosen.build()).eval(), models.longer_inputs(chosen))
    step = chosen.step.__func__
    with torch.inference_mode():
        check = sides.closeness(step(*arguments), 1e-4, 1e-4)
        backend = functools.partial(helion_tpu, runtime=runtime)
        ours = sides.called(sides.compiled(step, backend), arguments, check)
        eager = functools.partial(step, *arguments)
        measured = interleave({"ours": Local(ours), "eager": Local(eager)}, rounds)
        (program,) = runtime.programs
        spent, theirs = seconds_of(ours), eager_seconds_of(eager)
    known = instructions_of(program.run.text())
    spent = {one: seconds for one, seconds in spent.items() if one in known}
    slowest = sorted(spent, key=lambda one: -spent[one])[:SLOWEST]
    return {
        "sides": measured,
        "kinds": {
            kind: [sum(known[one].kind == kind for one in spent), sum(spent[o] for o in spent if known[o].kind == kind)]
            for kind in KINDS
        },
        "eager": theirs,
        "slowest": [[one, known[one].kind, known[one].source, spent[one]] for one in slowest],
        "note": "",
    }


HEADER = """# Where the time of a model goes on the CPU

`python -m bench cpu --only profiles` writes this file, from `cpu.json`. Milliseconds a call of the model's forward, as
in `cpu.md`. *XLA* is the sum over the program's instructions by JAX's profiler, threads added up, so that it may be
more than the time of the call; *eager* is torch's profiler over the operators of eager torch, whose matrix products
and convolutions (MKL, oneDNN) are also those of Inductor's C++. Profiling costs time of its own: shares count.
"""


def document(entries: Entries) -> str:
    """All profiles as Markdown."""
    return "\n".join([HEADER, *(part for item in cases(entries, "profiles").items() for part in _chapter(*item))])


def _chapter(name: str, entry: Mapping[str, Any]) -> list[str]:
    if "error" in entry:
        return [f"## {name}\n\n{entry['error']}\n"]
    ours, eager = (entry["sides"][side]["median"] * 1e3 for side in ("ours", "eager"))
    headline = f"## {name}: ours {ours:.2f} ms, eager {eager:.2f} ms\n"
    return [headline, _kinds(entry["kinds"], entry["eager"]), _slowest(entry["slowest"])]


def _kinds(kinds: Mapping[str, Sequence[float]], eager: Mapping[str, float]) -> str:
    whole = sum(seconds for _, seconds in kinds.values())
    rows = [
        [kind, str(count), f"{seconds * 1e3:.2f}", f"{seconds / whole:.0%}", _milliseconds(eager.get(kind))]
        for kind, (count, seconds) in kinds.items()
        if count or kind in eager
    ]
    rows += [[kind, markdown.NONE, markdown.NONE, markdown.NONE, _milliseconds(seconds)]
             for kind, seconds in eager.items() if kind not in kinds]  # fmt: skip
    return markdown.table(["kind", "instructions", "XLA, ms", "share", "eager, ms"], rows)


def _slowest(slowest: Sequence[Sequence[Any]]) -> str:
    rows = [[name, kind, source, f"{seconds * 1e3:.3f}"] for name, kind, source, seconds in slowest]
    return markdown.table(["slowest instructions", "kind", "from", "ms"], rows)


def _milliseconds(seconds: float | None) -> str:
    return markdown.NONE if seconds is None else f"{seconds * 1e3:.2f}"
