"""Setuptools' build backend, with source archives that are the same bytes whenever they are built.

Wheels of setuptools are already, where ``SOURCE_DATE_EPOCH`` is set. Its source archives hold the times at which files
were written, and who wrote them.
"""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import tarfile
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def build_sdist(folder: str, config: dict[str, Any] | None = None) -> str:
    """Builds the source archive, of the time ``SOURCE_DATE_EPOCH`` if that is set; returns its name."""
    name = build_meta.build_sdist(folder, config)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None:
        _settle(pathlib.Path(folder) / name, int(epoch))
    return name


def _settle(archive: pathlib.Path, epoch: int) -> None:
    """Writes an archive again: in the order of names, of one time and nobody's, with modes that say what can be run."""
    settled = io.BytesIO()
    with (
        tarfile.open(archive) as given,
        gzip.GzipFile(filename="", mode="wb", fileobj=settled, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in sorted(given.getmembers(), key=lambda member: member.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, epoch
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            made.addfile(plain, given.extractfile(member))
    archive.write_bytes(settled.getvalue())
