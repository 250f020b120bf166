"""With torch's own precompilation a second process does not trace, either; what it finds is checked all the same."""

from __future__ import annotations

import functools
import pathlib

import pytest
import torch

from tests.runtime.cache import test_second_process
from tests.runtime.cache.test_second_process import entries

run = functools.partial(test_second_process.run, TORCH_CACHING_PRECOMPILE="1")
later = functools.partial(run, server="second")


@pytest.mark.parametrize("case", ["inference", "views", "training", "kernel", "launch"])
def test_nothing_is_traced_again(case: str, tmp_path: pathlib.Path) -> None:
    first, second = run(case, tmp_path), later(case, tmp_path)
    assert first["graphs"] > 0 and first["compilations"] > 0
    assert second == {"results": first["results"], "compilations": 0, "graphs": 0}


def test_a_graph_without_record_is_traced_again(tmp_path: pathlib.Path) -> None:
    first, second = run("dynamic", tmp_path), later("dynamic", tmp_path)
    assert second["graphs"] == first["graphs"] > 0
    assert second["results"] == first["results"]


@pytest.mark.parametrize("case", ["kernel", "launch"])
def test_a_kernel_with_another_body_is_another_program(case: str, tmp_path: pathlib.Path) -> None:
    first = run(case, tmp_path, "FACTOR=2")
    second = later(case, tmp_path, "FACTOR=3")
    (two,), (three,) = (torch.tensor(process["results"]) for process in (first, second))
    torch.testing.assert_close((two - 1) * 3, (three - 1) * 2)


def test_another_kernel_under_the_name_is_another_program(tmp_path: pathlib.Path) -> None:
    first = run("launch", tmp_path)
    second = later("launch", tmp_path, "scale_into=negate_into")
    torch.testing.assert_close(*(sign * (torch.tensor(p["results"]) - 1) for sign, p in ((1, first), (-1, second))))


def test_a_record_that_is_damaged_is_traced_again(tmp_path: pathlib.Path) -> None:
    first = run("training", tmp_path)
    for number, path in enumerate(entries(tmp_path)):
        path.write_bytes(path.read_bytes()[:-9] if number % 2 else b"something else")
    assert later("training", tmp_path) == first
    assert later("training", tmp_path)["graphs"] == 0


def test_torchs_entry_cut_short_is_traced_again(tmp_path: pathlib.Path) -> None:
    first = run("inference", tmp_path)
    kept = list((tmp_path / "torch" / "dynamo").rglob("entry"))
    for path in kept:
        path.write_bytes(path.read_bytes()[:-20])
    second = later("inference", tmp_path)
    assert kept and second == {**first, "compilations": 0}


def test_a_program_compiled_with_other_flags_is_not_taken(tmp_path: pathlib.Path) -> None:
    first = run("inference", tmp_path)
    second = later("inference", tmp_path, XLA_FLAGS="--xla_cpu_enable_fast_min_max=true")
    assert second["graphs"] > 0 and second["compilations"] > 0
    assert second["results"] == first["results"]


def test_without_a_cache_folder_nothing_is_kept(tmp_path: pathlib.Path) -> None:
    first, second = (one("inference", tmp_path, "cache=") for one in (run, later))
    assert second == first
    assert first["graphs"] > 0 and not entries(tmp_path)
