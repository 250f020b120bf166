"""What `make test` runs of the long sweeps: a fixed part, which does not depend on the day or the machine.

A test with the mark ``sweep`` has cases that differ in sizes, types or spellings alone. Of these a third run, chosen by
their names; all of them with ``TPU_LOWERING_SWEEP=all``, which ``make sweep`` sets, and if a case is named.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import pytest

EVERY = 1 if os.environ.get("TPU_LOWERING_SWEEP") == "all" else 3
"""Of so many cases of a sweep one runs."""

GRAPHS = int(os.environ.get("TPU_LOWERING_GRAPHS", "200"))
"""How many random graphs go through the passes; other random programs are a part of as many."""


def left_out(items: Sequence[pytest.Item], named: Sequence[str]) -> set[pytest.Item]:
    """The cases of sweeps that are not in the subset.

    Args:
        items: all tests that were found.
        named: what the command line named: files, folders, tests or cases.
    """
    sweeps: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sweep") is not None and "[" in item.nodeid and item.nodeid not in named:
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
    found: set[pytest.Item] = set()
    for cases in sweeps.values():
        cases.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        found.update(cases[-(-len(cases) // EVERY) :])
    return found
