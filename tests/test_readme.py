"""The README's example runs as it stands, prints what the README says, and shows the figures that the bench wrote."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_prints_what_is_shown(tmp_path: pathlib.Path) -> None:
    (example,) = BLOCKS
    path = tmp_path / "example.py"
    path.write_text(example)
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    shown = README.read_text().partition("The last line prints\n\n```\n")[2].partition("```")[0]
    assert [line.rstrip() for line in run.stdout.splitlines()] == shown.splitlines()


def test_figures_are_those_the_bench_wrote() -> None:
    """The README's table holds rows of the table that ``make bench`` writes, word for word."""
    shown = README.read_text().partition("<!-- rows of")[2].partition("<!-- end")[0]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    written = (README.parent / "bench" / "results" / "tables.md").read_text().splitlines()
    assert len(rows) == 7
    assert all(row in written for row in rows)
