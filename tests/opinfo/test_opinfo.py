"""Torch's databases of operators, modules and optimizers, one test per entry.

By default a subset runs; with ``TPU_LOWERING_OPINFO=all`` (``make test-ops``) every entry, all its samples, in
every dtype that it supports, and its gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.opinfo import subset
from tests.opinfo.expected import complaint, states
from tests.opinfo.tasks import COLUMNS, DATABASES, DTYPES, Task, entries, supports
from tests.opinfo.worker import Worker

EVERYTHING = os.environ.get("TPU_LOWERING_OPINFO") == "all"


def _wanted() -> dict[tuple[str, str], list[str]]:
    """The columns to run of each entry."""
    if not EVERYTHING:
        return subset.columns()
    return {(database, name): list(COLUMNS) for database in DATABASES for name in entries(database)}


def _tasks(database: str, name: str, columns: list[str]) -> list[Task]:
    info, samples = entries(database)[name], 0 if EVERYTHING else subset.SAMPLES
    tasks = [
        Task(database, name, column.split()[0], column.endswith(" grad"), samples, reference=EVERYTHING)
        for column in columns
    ]
    return [task for task in tasks if supports(info, DTYPES[task.dtype], task.grad)]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.close()


@pytest.mark.parametrize(("database", "name"), _wanted())
def test_entry(worker: Worker, database: str, name: str) -> None:
    results = [worker.run(task) for task in _tasks(database, name, _wanted()[database, name])]
    complaints = [f"{result.column}: {said}" for result in results if (said := complaint(result))]
    assert not complaints, "\n".join(complaints)


def test_expected_states_are_of_entries_that_exist() -> None:
    assert [key for key in states() if key[1] not in entries(key[0]) or key[2] not in COLUMNS] == []
