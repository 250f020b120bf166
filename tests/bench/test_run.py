"""Running tasks: what is kept, what is skipped, and what a failure does."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from bench import GROUPS, TARGETS, run, store
from bench.tasks import Task, tasks_of
from tests.bench.made_up import entry
from tpu_lowering import errors


class Counted:
    """A task's run that counts how often it was called, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return {name: value for name, value in entry(8).items() if name not in ("note", "versions")}


def task(row: str, action: Counted) -> Task:
    return Task("seed", "exp", row, "tpu7x", "a shape", action)


def test_keeps_figures_with_note_and_versions(tmp_path: pathlib.Path) -> None:
    assert run.main([task("a", Counted())], False, tmp_path) == 0
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["seed/exp/a/tpu7x"] == {**entry(8), "versions": store.versions()}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_skips_what_is_there_unless_forced(tmp_path: pathlib.Path) -> None:
    action = Counted()
    for force, calls in ((False, 1), (False, 1), (True, 2)):
        run.main([task("a", action)], force, tmp_path)
        assert action.calls == calls


def test_other_versions_are_run_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    action = Counted()
    run.main([task("a", action)], False, tmp_path)
    monkeypatch.setattr(run, "versions", lambda: {"libtpu": "99"})
    run.main([task("a", action)], False, tmp_path)
    assert action.calls == 2


def test_a_failure_is_recorded_does_not_stop_the_rest_and_is_tried_again(tmp_path: pathlib.Path) -> None:
    failing, fine = Counted(errors.refuse("TL601", "k", "expected less, got more", "less")), Counted()
    tasks = [task("a", failing), task("b", fine)]
    assert run.main(tasks, False, tmp_path) == 1
    entries = store.read(tmp_path / "results.json")
    assert entries["seed/exp/a/tpu7x"]["error"]["code"] == "TL601"
    assert entries["seed/exp/b/tpu7x"]["programs"] == 1
    failing.error = None
    assert run.main(tasks, False, tmp_path) == 0
    assert (failing.calls, fine.calls) == (2, 1)


def test_results_are_written_after_every_task(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.main([task("a", Counted()), task("b", Counted(KeyboardInterrupt()))], False, tmp_path)  # pyright: ignore
    assert list(store.read(tmp_path / "results.json")) == ["seed/exp/a/tpu7x"]


def test_every_task_has_a_key_of_its_own() -> None:
    tasks = tasks_of(GROUPS, TARGETS)
    assert {one.group for one in tasks} == set(GROUPS)
    assert len({one.key for one in tasks}) == len(tasks)
    assert {one.target for one in tasks_of(GROUPS, ("v5e",))} == {"v5e"}
    with pytest.raises(ValueError, match="key twice"):
        tasks_of(("seed", "seed"), TARGETS)


def test_keys_have_four_parts() -> None:
    with pytest.raises(ValueError, match="without '/'"):
        Task("seed", "a/b", "row", "tpu7x", "", Counted())
