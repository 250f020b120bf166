"""Measures sections case by case, keeps each case as soon as it is there, and writes the report."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from bench.cpu import SECTIONS, goals
from bench.store import Store, versions

RESULTS = pathlib.Path(__file__).parent.parent / "results"
ROUNDS = 9
CACHE_ROUNDS = 3  # each has four processes

Measure = Callable[[str, str, int], "dict[str, Any] | str"]
"""Section, case and rounds to an entry, or to what went wrong."""


def cases_of(section: str) -> list[str]:
    """The cases of a section, in their order."""
    if section == "kernels":
        from bench.cpu.plain import PLAIN

        return list(PLAIN)
    if section in ("models", "training", "bfloat16", "profiles"):
        from bench.zoo import MODELS

        return list(MODELS)
    if section in ("dispatch", "decode", "cache"):
        return list(importlib.import_module(f"bench.cpu.{section}").CASES)
    return ["blocks"]


def measure_all(
    sections: Mapping[str, Sequence[str]], rounds: int, store: Store, measure: Measure, console: Console
) -> list[str]:
    """Measures cases by section, and keeps each under ``<section>/<case>`` in place of what was there.

    Returns:
        The keys of the cases that failed. Their errors are in the store.
    """
    import torch

    machine = {"versions": versions(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "rounds": rounds}
    failed: list[str] = []
    for section, names in sections.items():
        for name in track(names, description=section, console=console):
            answer = measure(section, name, rounds)
            if isinstance(answer, str):
                answer = {"error": answer, "sides": {}, "note": ""}
                failed.append(f"{section}/{name}")
            store.put(f"{section}/{name}", {**answer, **machine})
    return failed


def tidy(store: Store) -> dict[str, Any]:
    """Entries in the order of sections and cases; those of cases that are no more are left out."""
    keys = [f"{section}/{name}" for section in SECTIONS for name in cases_of(section)]
    return {key: store.entries[key] for key in keys if key in store.entries}


def write(entries: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes ``cpu.md``, ``cpu_profiles.md`` if there are any, and ``cpu.png`` if there are kernels or models."""
    from bench import plots
    from bench.cpu import plot, profiles, report

    (folder / "cpu.md").write_text(report.document(entries))
    if goals.cases(entries, "profiles"):
        (folder / "cpu_profiles.md").write_text(profiles.document(entries))
    figure = plot.draw(entries)
    if figure is not None:
        plots.save(figure, folder / "cpu.png")


def main(
    only: str | None = None, rounds: int = ROUNDS, folder: pathlib.Path | None = None, names: Sequence[str] = ()
) -> int:
    """Measures one section or all, shows and writes the report; the exit code: 1 if a case failed.

    Args:
        names: of cases; none for all of a section.
    """
    from bench.cpu import cache, report
    from bench.model_compile_time import Nursery, require_compiler

    require_compiler()
    folder = folder or RESULTS
    console = Console()
    chosen = {
        section: [name for name in cases_of(section) if not names or name in names]
        for section in ([only] if only else SECTIONS)
    }
    store = Store(folder / "cpu.json", slashes=1)
    nursery = Nursery("bench.cpu.worker") if any(section != "cache" for section in chosen) else None

    def measure(section: str, name: str, rounds: int) -> dict[str, Any] | str:
        if nursery is None or section == "cache":
            return cache.measure(name, min(rounds, CACHE_ROUNDS))
        return nursery.measure(section, name, str(rounds))

    try:
        failed = measure_all(chosen, rounds, store, measure, console)
    finally:
        if nursery is not None:
            nursery.stop()
    entries = tidy(store)
    report.show(entries, console)
    write(entries, folder)
    for key in failed:
        console.print(f"failed: {key}: {entries[key]['error']}", markup=False)
    return 1 if failed else 0
