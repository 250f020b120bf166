"""The dump folder: every stage of every graph, and each program as a Python file that runs on its own."""

from __future__ import annotations

import itertools
import pathlib
import tempfile
from collections.abc import Sequence

from torch import fx

from tpu_lowering import errors
from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.rows.row_kernel import RowKernel
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.ir.programs import Program


class DumpObserver:
    """Writes ``<program>/<nn>_<stage>.graph``, ``<program>/actions.txt`` and ``<program>/<program>.py``; generated
    kernels as ``<program>/<kernel>.py``."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.order = itertools.count()

    def _of(self, program: str) -> pathlib.Path:
        folder = self.folder / program
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
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
    """An observer that writes to a folder; none if the folder is "".

    Raises:
        TpuLoweringError: TL102 if it is no folder that can be written to.
    """
    if not folder:
        return []
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error
    return [DumpObserver(path)]


def cannot_write(path: pathlib.Path, error: OSError) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL102",
        "'dump'",
        f"expected a folder that can be written to, got {str(path)!r}: {error.strerror}",
        "pass another folder as options['dump']",
    )
