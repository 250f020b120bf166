"""What torch's own tools show of a compilation: ``TORCH_LOGS`` and the folder of ``TORCH_TRACE``."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

PROGRAM = """\
import torch, tpu_lowering

def double(x):
    out = torch.empty_like(x)
    return x * 2 + torch.zeros(3)

compiled = torch.compile(double, backend="helion_tpu", dynamic=True)
compiled(torch.ones(4, 3))
compiled(torch.ones(5, 3))
tpu_lowering.explain(double, torch.ones(3))
"""


def artefacts(folder: pathlib.Path) -> dict[str, tuple[dict[str, object], str]]:
    """The artefacts of a trace by their names: the record and its payload, whose lines are indented by a tab."""
    found: dict[str, tuple[dict[str, object], str]] = {}
    (path,) = folder.glob("*.log")
    record: dict[str, object] = {}
    for line in path.read_text().splitlines():
        if line.startswith("\t"):
            known = record.get("artifact")
            if isinstance(known, dict):
                name = str(known["name"])
                found[name] = (record, found.get(name, ({}, ""))[1] + line[1:] + "\n")
        elif "{" in line:
            record = json.loads(line[line.index("{") :])
    return found


def test_graphs_programs_and_reports_are_artefacts(tmp_path: pathlib.Path) -> None:
    path, folder = tmp_path / "double.py", tmp_path / "trace"
    path.write_text(PROGRAM)
    environment = {**os.environ, "TORCH_TRACE": str(folder), "TORCH_LOGS": "output_code,graph_code,recompiles"}
    run = subprocess.run(
        [sys.executable, path], env=environment, cwd=pathlib.Path.cwd(), capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = artefacts(folder)
    ours = {name for name in found if name.startswith("tpu_lowering_")}
    forms = ("graph_as_written", "graph_compiled", "output_code", "actions")
    assert {f"tpu_lowering_{form}_inference_0_0" for form in forms} | {"tpu_lowering_report"} <= ours
    record, code = found["tpu_lowering_output_code_inference_0_0"]
    assert "def inference_0_0(" in code
    assert "aten.mul" in found["tpu_lowering_graph_as_written_inference_0_0"][1]
    assert record["artifact"] == {"name": "tpu_lowering_output_code_inference_0_0", "encoding": "string"}
    assert isinstance(json.loads(found["tpu_lowering_actions_inference_0_0"][1]), list)
    assert json.loads(found["tpu_lowering_report"][1])["programs_after"] == 1
    assert "[__output_code]" in run.stderr and "def inference_0_0(" in run.stderr
    assert "tpu_lowering_graph_compiled_inference_0_0" in run.stderr
    assert "inference_0_1 is compiled again" in run.stderr and "TL512" in run.stderr
