"""``Collector``: an observer that gathers what a report needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat, errors, pipeline
from tpu_lowering.analyse import splits
from tpu_lowering.capture.refusals import said_by_dynamo
from tpu_lowering.capture.remarks import Remarks, nodes_of
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs, random
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.operators import is_allocation, is_fill
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.ir.types import TensorType
from tpu_lowering.report.boxes import ProgramGraphs, boxes_of
from tpu_lowering.report.findings import Draw
from tpu_lowering.report.report import Report

NOTED = ("fresh", "interpreted", "moved", "unwritten", "updated", "whole")
"""Kinds of actions that, with a code, are remarks."""


class Collector(Remarks):
    """An observer that gathers what a report needs."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[str] = []
        self.calls_before = self.calls = 0
        self.draws: list[Draw] = []
        self.before = 0
        self.made: dict[tuple[str, str], Remark] = {}
        self.fills: set[tuple[str, str]] = set()
        self.left: set[tuple[str, str]] = set()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.graphs: dict[str, ProgramGraphs] = {}
        self.saved: list[Remark] = []

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        super().stage(program, stage, module, seconds)
        if stage == pipeline.AS_WRITTEN:
            self._as_written(program, module)

    def begins(self, program: str, stage: str) -> None:
        """Only how long it took matters."""

    def ended(self, program: str, stage: str, seconds: float) -> None:
        self.seconds[stage] += seconds

    def _as_written(self, program: str, module: fx.GraphModule) -> None:
        self.before += splits.program_count(module.graph, splits.RULES["torch_tpu"])
        self.graphs[program] = ProgramGraphs(program, boxes_of(module.graph, split=True))
        for node in nodes_of(module):
            key = (program, node.name)
            self.calls_before += graphs.is_call(node, kernel_call)
            if is_allocation(node) or is_fill(node):
                self.made[key] = Remark(node.name, program, self.place(*key), graphs.type_of(node).nbytes)
                if is_fill(node):
                    self.fills.add(key)

    def compiled(self, program: Program, source: Source) -> None:
        super().compiled(program, source)
        nodes = nodes_of(program.module)
        self.programs.append(program.name)
        self.calls += sum(graphs.is_call(node, kernel_call) for node in nodes)
        self.draws += _draws(program)
        self.saved += [
            Remark(node.name, program.name, self.place(program.name, node.name), TensorType.of(value).nbytes)
            for node, value in _saved(program)
        ]
        self.left |= {(program.name, node.name) for node in nodes}
        written = self.graphs[program.name].written
        self.graphs[program.name] = ProgramGraphs(program.name, written, boxes_of(program.module.graph, split=False))

    def report(self) -> Report:
        """The report of everything compiled so far."""
        removed = {key: buffer for key, buffer in self.made.items() if key not in self.left}
        fresh = [action for _, action in self.actions if action.kind == "fresh" and action.code != "TL504"]
        kept = [self.remark(program, action) for program, action in self.actions if action.kind == "kept"]
        by_kind = {True: [b for b in kept if self._is_made(b)], False: [b for b in kept if not self._is_made(b)]}
        stay = {(b.program, b.node): b.nbytes for b in by_kind[True]}
        return Report(
            programs_before=self.before,
            programs_after=len(self.programs),
            kernel_calls_before=self.calls_before,
            kernel_calls=self.calls,
            allocations_removed=sum(key not in self.fills for key in removed),
            fills_removed=sum(key in self.fills for key in removed),
            bytes_saved=sum(b.nbytes for b in removed.values()) + sum(action.nbytes for action in fresh),
            bytes_left=sum(stay.values()) + sum(b.nbytes for b in by_kind[True] if b.code != "TL503"),
            removed=tuple(removed.values()),
            allocations_kept=tuple(by_kind[True]),
            aliases_kept=tuple(by_kind[False]),
            notes=tuple(self.remark(p, a) for p, a in self.actions if a.kind in NOTED and a.code),
            programs=tuple(self.programs),
            draws=tuple(self.draws),
            seconds=dict(self.seconds),
            sizes_kept=self.of_kind("exact"),
            recompiles=self.of_kind("recompiled"),
            fused=self.of_kind("fused"),
            unfused=self.of_kind("unfused"),
            launched=self.of_kind("launched"),
            in_eager=self.of_kind("eager"),
            saved=tuple(sorted(self.saved, key=lambda one: -one.nbytes)),
            graphs=tuple(self.graphs.values()),
        )

    def _is_made(self, buffer: Remark) -> bool:
        return (buffer.program, buffer.node) in self.made


def _draws(program: Program) -> list[Draw]:
    """Where a program draws random numbers, or is given them."""
    found: list[Draw] = []
    for node in program.module.graph.nodes:
        source = node.meta.get("drawn")
        if node.target is random.draw:
            found.append(Draw(node.name, program.name, graphs.place(node), str(node.args[0]), "key"))
        elif isinstance(source, random.Drawn):
            found.append(Draw(node.name, program.name, graphs.place(node), source.name, "torch"))
    return found


def _saved(program: Program) -> list[tuple[fx.Node, Any]]:
    """What a program computes for a backward alone: each value, and the node that it comes from."""
    computed = [spec for spec in program.signature.outputs if spec.is_computed]
    found: list[tuple[fx.Node, Any]] = []
    for node, spec in zip(program.output_nodes(), computed, strict=False):
        if spec.is_saved:
            # What is put into the order that it has in memory, or made contiguous for it, has no line of its own.
            behind = node if graphs.place(node) or not node.all_input_nodes else node.all_input_nodes[0]
            found.append((behind, node.meta["val"]))
    return found


def breaks(found: Sequence[compat.Break], function: str) -> tuple[Remark, ...]:
    """Where Dynamo left a function, and why; ``function`` is where the function itself is."""
    remarks: list[Remark] = []
    for one in found:
        first, explanation, hints = said_by_dynamo(one.reason)
        where = graphs.source_line_of(one.stack_trace) or function
        reason = ": ".join(filter(None, (first, explanation)))
        remarks.append(Remark("graph break", "", where, 0, "TL515", reason, hints or errors.REMEDIES["TL515"]))
    return tuple(remarks)
