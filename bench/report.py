"""Tables and plots of a set of results."""

from __future__ import annotations

import pathlib

from bench import plots, tables
from bench.store import Store


def write(store: Store, folder: pathlib.Path) -> None:
    """Writes ``tables.md`` and the plots that there are figures for."""
    (folder / "tables.md").write_text(tables.document(store.entries))
    for name, draw in plots.PLOTS.items():
        figure = draw(store.entries)
        if figure is not None:
            plots.save(figure, folder / name)
