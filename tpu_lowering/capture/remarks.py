"""``Remarks``: an observer that makes remarks of what passes did, for reports and for programs of a chip."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from tpu_lowering import errors, pipeline
from tpu_lowering.capture import recompiles
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs, regions
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.remarks import Remark


class Remarks:
    """An observer that keeps what passes did, and where each node comes from."""

    def __init__(self) -> None:
        self.actions: list[tuple[str, Action]] = []
        self.places: dict[tuple[str, str], str] = {}

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        if stage == pipeline.AS_WRITTEN:
            self.places |= {(program, node.name): graphs.place(node) for node in nodes_of(module)}

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self.actions += [(program, action) for action in actions]

    def compiled(self, program: Program, source: Source) -> None:
        for node in nodes_of(program.module):
            self.places.setdefault((program.name, node.name), graphs.place(node))

    def of_kind(self, kind: str, program: str = "") -> tuple[Remark, ...]:
        """The remarks on actions of a kind, of one program or of all."""
        return tuple(
            self.remark(owner, action)
            for owner, action in self.actions
            if action.kind == kind and program in ("", owner)
        )

    def place(self, program: str, node: str) -> str:
        """Where a node comes from; of what neither a line nor a module is known, its program and where that begins."""
        if found := self.places.get((program, node)):
            return found
        begins = next((place for (owner, _), place in self.places.items() if owner == program and place), "")
        return f"{program}, which begins at {begins}" if begins else f"program {program}"

    def remark(self, program: str, action: Action) -> Remark:
        where = action.where or self.place(program, action.node)
        remedy = recompiles.remedy_for(action.reason) if action.code == "TL513" else ""
        remedy = remedy or errors.REMEDIES.get(action.code, "")
        return Remark(action.node, program, where, action.nbytes, action.code, action.reason, remedy)


def nodes_of(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph and of its regions."""
    return [node for part in regions.modules(module) for node in part.graph.nodes]
