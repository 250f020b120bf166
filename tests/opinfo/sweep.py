"""The sweep as a command: ``python -m tests.opinfo.sweep --dtype float32 [--grad] [--only NAME] [--workers 2]``.

Results are appended to a file of JSON lines; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import pathlib
import queue
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.opinfo.tasks import DATABASES, DTYPES, Result, Task, chosen_entries, supports
from tests.opinfo.worker import LIMIT, Worker


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo.sweep", description=__doc__)
    parser.add_argument("--database", choices=DATABASES, default="op")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be repeated; float32 if not given")
    parser.add_argument("--grad", action="store_true", help="forward and backward")
    parser.add_argument("--only", action="append", help="an entry's full name; may be repeated")
    parser.add_argument("--samples", type=int, default=0, help="so many of each entry, evenly spread; 0 for all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one entry")
    parser.add_argument("--output", type=pathlib.Path, help="file of JSON lines to append to and go on from")
    parser.add_argument("--quick", action="store_true", help="aot_eager only where ours fails")
    return parser.parse_args()


def tasks(chosen: argparse.Namespace) -> list[Task]:
    """The tasks of a command line."""
    known = chosen_entries(chosen.database, chosen.only)
    return [
        Task(chosen.database, name, dtype, chosen.grad, chosen.samples, not chosen.quick)
        for dtype in chosen.dtype or ["float32"]
        for name, info in known.items()
        if supports(info, DTYPES[dtype], chosen.grad)
    ]


def read(path: pathlib.Path | None) -> list[Result]:
    """Results of an earlier run."""
    if path is None or not path.exists():
        return []
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]


def sweep(wanted: Sequence[Task], workers: int, limit: float, output: pathlib.Path | None) -> list[Result]:
    """Runs tasks on worker processes, those that are not in ``output`` yet."""
    done = {(x.database, x.name, x.column): x for x in read(output)}
    left = [task for task in wanted if (task.database, task.name, task.column) not in done]
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for _ in range(workers):
        free.put(Worker(limit))

    def run(task: Task) -> Result:
        worker = free.get()
        try:
            return worker.run(task)
        finally:
            free.put(worker)

    with Progress(console=Console(stderr=True)) as progress, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task("sweep", total=len(left))
        for future in concurrent.futures.as_completed([pool.submit(run, task) for task in left]):
            result = future.result()
            done[result.database, result.name, result.column] = result
            progress.advance(bar)
            if output is not None:
                with output.open("a") as file:
                    print(json.dumps(dataclasses.asdict(result)), file=file)
    while not free.empty():
        free.get().close()
    return [done[task.database, task.name, task.column] for task in wanted]


def summary(results: Sequence[Result]) -> Table:
    """Counted entries, passes and failures by code for each column."""
    table = Table("column", "entries", "counted", "pass", "share", "failures by code", "samples", "seconds")
    for column in dict.fromkeys(result.column for result in results):
        rows = [result for result in results if result.column == column]
        counted = [result for result in rows if result.counted]
        passed = [result for result in counted if not result.code]
        codes = collections.Counter(result.code for result in counted if result.code)
        table.add_row(
            column,
            str(len(rows)),
            str(len(counted)),
            str(len(passed)),
            f"{len(passed) / max(1, len(counted)):.1%}",
            ", ".join(f"{code} {count}" for code, count in codes.most_common()),
            str(sum(result.samples for result in rows)),
            f"{sum(result.seconds for result in rows):.0f}",
        )
    return table


def failures(results: Sequence[Result]) -> Table:
    """Every counted entry that fails, with why."""
    table = Table("entry", "column", "code", "samples", "why")
    for result in results:
        if result.code and result.counted:
            table.add_row(result.name, result.column, result.code, ",".join(map(str, result.failing)), result.message)
    return table


def main() -> None:
    chosen = arguments()
    results = sweep(tasks(chosen), chosen.workers, chosen.limit, chosen.output)
    console = Console()
    console.print(failures(results))
    console.print(summary(results))


if __name__ == "__main__":
    main()
