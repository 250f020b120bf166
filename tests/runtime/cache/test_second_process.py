"""A second process finds what the first one compiled, and nothing else."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import pytest
import torch

from tests.processes import forked
from tpu_lowering.runtime.cache.store import Store


def start(case: str, folder: pathlib.Path, *settings: str, server: str = "first", **variables: str) -> forked.Child:
    """A process of a server: what the first ones keep, those of the second find."""
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"), **variables}
    command = ("-m", "tests.runtime.cache.child", case, str(folder / "ours"), *settings)
    return forked.server(server).start(*command, **variables)


def answer(process: forked.Child) -> dict[str, Any]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(output.splitlines()[-1])


def run(case: str, folder: pathlib.Path, *settings: str, **given: str) -> dict[str, Any]:
    return answer(start(case, folder, *settings, **given))


later = functools.partial(run, server="second")


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in (folder / "ours").rglob("*") if path.is_file()]


@pytest.mark.parametrize("case", ["plain", "largest", "updates", "training", "kernel", "launch", "gradient"])
def test_nothing_is_compiled_again(case: str, tmp_path: pathlib.Path) -> None:
    first, second = run(case, tmp_path), later(case, tmp_path)
    assert first["compilations"] > 0
    assert second == {**first, "compilations": 0}


def test_a_program_that_calls_lapack_is_compiled_in_each_process(tmp_path: pathlib.Path) -> None:
    first, second = run("factorised", tmp_path), later("factorised", tmp_path)
    assert second == first
    assert not entries(tmp_path)


def test_damaged_entries_are_written_anew(tmp_path: pathlib.Path) -> None:
    first = run("training", tmp_path)
    damaged = entries(tmp_path)
    for number, path in enumerate(damaged):
        path.write_bytes(path.read_bytes()[:-9] if number % 2 else b"something else")
    assert later("training", tmp_path) == first
    store = Store(tmp_path / "ours")
    assert damaged and all(store.read(path.name) is not None for path in damaged)


@pytest.mark.parametrize("case", ["kernel", "launch"])
def test_a_kernel_with_another_body_is_another_program(case: str, tmp_path: pathlib.Path) -> None:
    first = run(case, tmp_path, "FACTOR=2")
    second = later(case, tmp_path, "FACTOR=3")
    assert second["compilations"] > 0 or case == "launch"  # a global number is an operand of a Helion kernel
    (two,), (three,) = (torch.tensor(process["results"]) for process in (first, second))
    torch.testing.assert_close((two - 1) * 3, (three - 1) * 2)


def test_a_kernel_with_another_gradient_is_another_program(tmp_path: pathlib.Path) -> None:
    first, second = run("gradient", tmp_path, "FACTOR=3"), later("gradient", tmp_path, "FACTOR=6")
    torch.testing.assert_close(torch.tensor(first["results"]) * 2, torch.tensor(second["results"]))


def test_another_kernel_under_the_name_is_another_program(tmp_path: pathlib.Path) -> None:
    first = run("launch", tmp_path)
    second = later("launch", tmp_path, "scale_into=negate_into")
    torch.testing.assert_close(*(sign * (torch.tensor(p["results"]) - 1) for sign, p in ((1, first), (-1, second))))


def test_processes_at_once_agree(tmp_path: pathlib.Path) -> None:
    answers = [answer(process) for process in [start("training", tmp_path) for _ in range(3)]]
    assert all(one["results"] == answers[0]["results"] for one in answers)
    assert later("training", tmp_path) == {**answers[0], "compilations": 0}
