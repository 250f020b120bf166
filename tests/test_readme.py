"""The README's Python runs as it stands."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "block.py"
    path.write_text(BLOCKS[number])
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    if "explain(" in BLOCKS[number]:
        assert "One XLA program. No allocation is left." in run.stdout


def test_figures_are_those_the_bench_wrote() -> None:
    """The README's table holds rows of the table that ``make bench`` writes, word for word."""
    shown = README.read_text().partition("<!-- rows of")[2].partition("<!-- end")[0]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    written = (README.parent / "bench" / "results" / "tables.md").read_text().splitlines()
    assert len(rows) == 7
    assert all(row in written for row in rows)
    assert (README.parent / "bench" / "results" / "growth.png").is_file()
