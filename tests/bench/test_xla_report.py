"""The document of the comparison on torch_xla's tensors."""

from __future__ import annotations

from typing import Any

from bench import xla_report

MACHINE = {"versions": {"torch": "2.9.0", "helion": ""}, "cores": 2, "rounds": 3, "load": 0.5}


def entry(samples: list[float], **changed: Any) -> dict[str, Any]:
    figures = {"compilations": 1, "later": 0, "executions": 1.0, "transfers": 0.0, "first": 2.0, "difference": 1e-6}
    return {**figures, "samples": samples, **changed, **MACHINE}


ENTRIES = {
    "exp/helion_tpu": entry([0.001, 0.002, 0.001]),
    "exp/torch_xla": entry([0.002, 0.004, 0.008], executions=2.5, compilations=3),
    "exp/openxla": {"error": "RuntimeError: no", **MACHINE, "load": 1.5},
}


def test_ratios_are_taken_within_rounds() -> None:
    cells = dict(zip(xla_report.HEADERS, xla_report.row("exp", "torch_xla", ENTRIES), strict=True))
    assert cells["over ours"] == "2.00" and cells["ms a call"] == "4.00"
    assert (cells["fastest"], cells["slowest"]) == ("2.00", "8.00")
    assert (cells["compilations"], cells["executions a call"], cells["first call, s"]) == ("3", "2.5", "2.00")


def test_a_way_that_failed_says_why() -> None:
    cells = xla_report.row("exp", "openxla", ENTRIES)
    assert len(cells) == len(xla_report.HEADERS)
    assert cells[:3] == ["exp", "openxla", "-"] and cells[-1] == "RuntimeError: no"


def test_the_document_names_the_machine_and_its_load() -> None:
    text = xla_report.document(ENTRIES)
    assert "2 cores, load 0.5 to 1.5 during the run, torch 2.9.0\n" in text
    assert "helion " not in text.partition("| model")[0].replace("helion_tpu", "")
    assert "of 3 rounds" in text and text.count("\n| exp ") == 3
