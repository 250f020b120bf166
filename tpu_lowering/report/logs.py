"""Logging: ``tpu_lowering`` is a standard logger; stages at DEBUG, generated code at INFO. What torch's own tools ask
for by ``TORCH_LOGS`` and ``TORCH_TRACE`` they are given too."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence

from torch import fx

from tpu_lowering import compat, pipeline
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


class TorchObserver:
    """Tells torch's own tools.

    ``TORCH_LOGS`` with ``graph_code`` has each graph as its author wrote it and as it was compiled; with
    ``output_code`` each generated program; with ``recompiles`` why one was compiled again. A folder of ``TORCH_TRACE``,
    which tlparse reads, has the graphs, the programs, and what each pass did.
    """

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        if stage == pipeline.AS_WRITTEN:
            self._graph(program, "as_written", module)

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        self.actions.setdefault(program, []).extend(actions)
        for action in actions:
            if action.kind == "recompiled":
                text = f"{program} is compiled again, {action.where}: {action.code} {action.reason}"
                _log("recompiles", lambda text=text: text)

    def compiled(self, program: Program, source: Source) -> None:
        self._graph(program.name, "compiled", program.module)
        actions = self.actions.pop(program.name, [])
        _tell("output_code", f"tpu_lowering_output_code_{program.name}", "string", lambda: source.text)
        payload = functools.partial(_as_json, actions)
        compat.trace_artifact(f"tpu_lowering_actions_{program.name}", "json", payload)

    @staticmethod
    def _graph(program: str, form: str, module: fx.GraphModule) -> None:
        name = f"tpu_lowering_graph_{form}_{program}"
        _tell("graph_code", name, "string", lambda: print_graph(module.graph))


def _as_json(actions: Sequence[Action]) -> str:
    return json.dumps([dataclasses.asdict(action) for action in actions], indent=1)


def _log(artifact: str, text: Callable[[], str]) -> None:
    """Logs a text for ``TORCH_LOGS``, if that asks for it."""
    log = compat.artifact_log(artifact)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s", text())


def _tell(artifact: str, name: str, encoding: str, text: Callable[[], str]) -> None:
    _log(artifact, lambda: f"{name}\n{text()}")
    compat.trace_artifact(name, encoding, text)
