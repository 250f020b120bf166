"""Sizes and names as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence


def size_text(nbytes: int) -> str:
    """A size for people: 400.0 MiB."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def names_text(nodes: Sequence[str]) -> str:
    """Nodes for people: a name, ``3 × empty_like`` for several of one operator, or ``3 values``."""
    stems = {re.sub(r"_\d+$", "", name) for name in nodes}
    if len(nodes) == 1:
        return nodes[0]
    return f"{len(nodes)} × {stems.pop()}" if len(stems) == 1 else f"{len(nodes)} values"
