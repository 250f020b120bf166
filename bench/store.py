"""``results.json``: what every task said, kept after each one, so that a run that was cut short goes on."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from tpu_lowering.releases import version

Entry = dict[str, Any]
"""Figures of a task, ``note`` and ``versions``; or ``error`` instead of the figures."""

PACKAGES = ("torch", "helion", "jax", "jaxlib", "libtpu", "transformers", "tpu_lowering")


def versions() -> dict[str, str]:
    """The versions that figures depend on. A change of tpu_lowering between releases is not among them."""
    return {package: version(package) or "" for package in PACKAGES}


class Store:
    """Entries by key, in a file that is replaced as a whole whenever one is added."""

    def __init__(self, path: pathlib.Path, slashes: int = 3) -> None:
        self.path = path
        self.entries: dict[str, Entry] = read(path, slashes) if path.exists() else {}

    def has(self, key: str, current: dict[str, str]) -> bool:
        """Whether a task has figures from these versions; an error is not figures."""
        entry = self.entries.get(key)
        return entry is not None and "error" not in entry and entry["versions"] == current

    def put(self, key: str, entry: Entry) -> None:
        self.entries[key] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.entries, indent=1, sort_keys=True) + "\n")
        os.replace(draft, self.path)


def read(path: pathlib.Path, slashes: int = 3) -> dict[str, Entry]:
    """The entries of a file, whose keys have so many slashes.

    Raises:
        ValueError: it is not a file of results.
    """
    try:
        entries = json.loads(path.read_text())
        sound = all(key.count("/") == slashes and "versions" in entry for key, entry in entries.items())
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"expected results of python -m bench in {path}, got {error}") from error
    if not sound:
        raise ValueError(f"expected results of python -m bench in {path}, got other JSON")
    return entries
