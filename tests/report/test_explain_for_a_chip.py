"""``explain`` with a target: what the chip refuses leaves the CPU's report; and the line that says what it is at."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console

import tpu_lowering
from tests.report.test_places import breaks
from tests.report.test_report import X, model
from tpu_lowering import errors
from tpu_lowering.report import chip
from tpu_lowering.report.progress import Progress


def test_what_the_compiler_refuses_leaves_the_cpus_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise errors.refuse("TL601", "exp_into", "expected at most 64 MiB, got 65", "smaller blocks", "model.py:3")

    monkeypatch.setattr(chip, "view", refuse)
    report = tpu_lowering.explain(model, X, target="tpu7x")
    assert (report.programs_before, report.programs_after, report.chip) == (3, 1, None)
    (refused,) = report.refused
    assert (refused.code, refused.where, refused.remedy) == ("TL601", "model.py:3", "smaller blocks")
    assert "Refused for the target." in str(report) and "[TL601]" in str(report)
    assert "TL601" in report._repr_html_()


def test_a_graph_break_leaves_the_cpus_report() -> None:
    """A program for a chip is one graph."""
    pytest.importorskip("libtpu")
    report = tpu_lowering.explain(breaks, X, target="tpu7x")
    assert [remark.code for remark in report.graph_breaks] == ["TL515"]
    (refused,) = report.refused
    assert refused.code == "TL517" and refused.where.startswith("test_places.py:")
    assert report.chip is None and report.programs_after == 2


def test_without_gradients_there_is_no_backward_on_the_chip() -> None:
    pytest.importorskip("libtpu")
    layer, x = torch.nn.Linear(128, 128), torch.ones(8, 128)
    with torch.no_grad():
        report = tpu_lowering.explain(layer, x, target="v5e")
    assert report.chip is not None
    assert [direction.name for direction in report.chip.directions] == ["forward"]
    assert report.chip.saved_bytes is None and len(report.programs) == 1
    assert "│ compiled for the CPU " in str(report)  # the chip's rows have its name


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_says_what_explain_is_at_on_a_terminal_alone(terminal: bool) -> None:
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=terminal, width=80)) as progress:
        progress.begins("inference_0", "compile")
        progress.line.refresh()
    assert ("inference_0: XLA compiles" in text.getvalue()) is terminal
    assert torch.is_grad_enabled()
