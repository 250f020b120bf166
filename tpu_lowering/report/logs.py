"""Logging: ``tpu_lowering`` is a standard logger; stages at DEBUG, generated code at INFO."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import fx

from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.ir.programs import Program

graph_log = logging.getLogger("tpu_lowering.graphs")
code_log = logging.getLogger("tpu_lowering.output_code")
pass_log = logging.getLogger("tpu_lowering.passes")
recompile_log = logging.getLogger("tpu_lowering.recompiles")


class LogObserver:
    """Writes graphs to ``tpu_lowering.graphs`` (DEBUG), actions of passes to ``tpu_lowering.passes``
    (INFO), reasons of recompiles to ``tpu_lowering.recompiles`` (INFO) and generated code to
    ``tpu_lowering.output_code`` (INFO)."""

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        if graph_log.isEnabledFor(logging.DEBUG):
            graph_log.debug("%s after %s (%.1f ms)\n%s", program, stage, seconds * 1e3, print_graph(module.graph))

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        for action in actions:
            if action.kind == "recompiled":
                recompile_log.info("%s: %s %s", program, action.code, action.reason)
                continue
            pass_log.info(
                "%s %s: %s %s at %s: %s %s",
                program,
                name,
                action.kind,
                action.node,
                action.where,
                action.code,
                action.reason,
            )

    def compiled(self, program: Program, source: Source) -> None:
        code_log.info("%s\n%s", program.name, source.text)
