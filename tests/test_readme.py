"""The README shows the figures that the bench wrote; its example is run with those of all pages."""

from __future__ import annotations

import pathlib

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_figures_are_those_the_bench_wrote() -> None:
    """The README's table holds rows of the table that ``make bench`` writes, word for word."""
    shown = README.read_text().partition("<!-- rows of")[2].partition("<!-- end")[0]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    written = (README.parent / "bench" / "results" / "tables.md").read_text().splitlines()
    assert len(rows) == 7
    assert all(row in written for row in rows)
