"""Sizes as people write them."""

from __future__ import annotations


def size_text(nbytes: int) -> str:
    """A size for people: 400.0 MiB."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
