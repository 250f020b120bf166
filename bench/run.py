"""Runs tasks one after the other, keeps what each says, and writes tables and plots at the end."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.programs import refused
from bench.store import Store, versions
from bench.tasks import Task

RESULTS = pathlib.Path(__file__).parent / "results"


def run_tasks(tasks: Sequence[Task], store: Store, force: bool, console: Console) -> list[str]:
    """Runs the tasks that have no figures of these versions yet.

    Args:
        force: run those too that have.

    Returns:
        The keys of the tasks that failed. Their errors are in the store; the other tasks ran.
    """
    current = versions()
    pending = [task for task in tasks if force or not store.has(task.key, current)]
    failed: list[str] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(pending))
        for task in pending:
            progress.update(bar, description=task.key)
            try:
                entry = task.run()
            except Exception as error:
                entry = {"error": refused(error)}
                failed.append(task.key)
                progress.console.print(f"{task.key}: {entry['error']['code']}", markup=False)
            store.put(task.key, {**entry, "note": task.note, "versions": current})
            progress.advance(bar)
        progress.update(bar, description=f"{len(tasks) - len(pending)} already there")
    return failed


def main(
    tasks: Sequence[Task],
    force: bool,
    folder: pathlib.Path = RESULTS,
    report: Callable[[Store, pathlib.Path], None] | None = None,
) -> int:
    """Runs tasks and writes ``results.json`` and the report into a folder; the exit code: 1 if one failed."""
    console = Console()
    store = Store(folder / "results.json")
    failed = run_tasks(tasks, store, force, console)
    if report is not None:
        report(store, folder)
    console.print(f"{len(tasks) - len(failed)} of {len(tasks)} tasks have figures; see {folder}", markup=False)
    for key in failed:
        console.print(f"failed: {key}\n{store.entries[key]['error']['text']}", markup=False)
    return 1 if failed else 0
