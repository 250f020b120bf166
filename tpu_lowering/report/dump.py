"""The dump folder: every stage of every graph, and each program as a Python file that runs on its own."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence

from torch import fx

from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.kernels import RowKernel
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.ir.programs import Program
from tpu_lowering.passes.base import Action


class DumpObserver:
    """Writes ``<program>/<nn>_<stage>.graph``, ``<program>/actions.txt`` and ``<program>/<program>.py``; generated
    kernels as ``<program>/<kernel>.py``."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.order = itertools.count()

    def _of(self, program: str) -> pathlib.Path:
        folder = self.folder / program
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        path = self._of(program) / f"{next(self.order):03d}_{stage}.graph"
        path.write_text(print_graph(module.graph) + "\n")

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        with (self._of(program) / "actions.txt").open("a") as file:
            for action in actions:
                file.write(f"{name}: {action.kind} {action.node} {action.code} {action.reason} [{action.where}]\n")

    def compiled(self, program: Program, source: Source) -> None:
        folder = self._of(program.name)
        load.save(folder, program, source)
        for name, kernel in source.kernels.items():
            if isinstance(kernel, RowKernel):
                (folder / f"{name}.py").write_text(kernel.text)


def dump_observer(folder: str) -> list[DumpObserver]:
    """An observer that writes to a folder; none if the folder is ""."""
    return [DumpObserver(pathlib.Path(folder))] if folder else []
