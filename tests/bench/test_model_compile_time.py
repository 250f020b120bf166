"""The comparison of compile times: what the tables make of measurements, and one real measurement."""

from __future__ import annotations

import pytest

from bench import model_compile_time as measured
from tpu_lowering import errors


def sample(wall: float, cpu: float) -> dict[str, float]:
    return {"wall": wall, "cpu": cpu}


SAMPLES: measured.Samples = {
    "small": {"helion_tpu": [sample(1, 2), sample(9, 9), sample(2, 3)], "inductor": [sample(4, 6)] * 3},
    "large": {"helion_tpu": [sample(8, 8)] * 3, "inductor": [sample(4, 16), sample(4, 16), sample(4, 16)]},
    "broken": {"helion_tpu": [sample(1, 1)], "inductor": []},
}


def test_rows_are_medians_of_models_that_both_sides_compiled() -> None:
    small, large = measured.rows(SAMPLES)
    assert (small.model, small.ours, small.inductor, small.ratio, small.rounds) == ("small", 2, 4, 0.5, 3)
    assert (large.model, large.ratio, large.cpu_ratio) == ("large", 2, 0.5)


def test_document_has_the_geometric_means_and_the_failures() -> None:
    text = measured.document(SAMPLES, {"broken, inductor": "no compiler"}, "two cores")
    assert "Geometric mean of the ratios over 2 models: 1.00 (CPU seconds: 0.50)." in text
    assert "- broken, inductor: no compiler" in text and "two cores" in text


def test_without_a_compiler_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(errors.TpuLoweringError) as caught:
        measured.require_compiler()
    assert str(caught.value).splitlines() == [
        "[TL105] package missing or outside the tested versions: g++",
        "  why  expected a C++ compiler (Inductor generates C++ on a CPU), got none",
        "  fix  install g++, or name a compiler in CXX",
    ]


def test_a_child_measures_and_the_nursery_goes_on_after_a_failure() -> None:
    nursery = measured.Nursery()
    try:
        assert "KeyError" in str(nursery.measure("no such model", "helion_tpu"))
        answer = nursery.measure("resnet", "helion_tpu")
    finally:
        nursery.stop()
    assert isinstance(answer, dict), answer
    assert answer["wall"] > 0 and answer["cpu"] > 0
