"""A folder of entries that outlive the process: written whole or not at all, checked when they are read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Sequence

MAGIC = b"tpu_lowering entry 1\n"


def digest(parts: Sequence[bytes | str]) -> str:
    """A key for some contents: SHA-256 over the parts, each with its length. Hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


@functools.cache
def package_digest() -> str:
    """Digest of this package's sources: generated code calls them, so entries of others are not ours."""
    root = pathlib.Path(__file__).parent.parent
    files = sorted(root.rglob("*.py"))
    return digest([part for file in files for part in (str(file.relative_to(root)), file.read_bytes())])


class Store:
    """Entries by key.

    An entry is replaced in one step, so readers in other processes see the old one or the new one. One that is cut
    short, that something else wrote, or that cannot be read is as good as none.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def path(self, key: str) -> pathlib.Path:
        return self.folder / key[:2] / key

    def read(self, key: str) -> bytes | None:
        """The contents of an entry; None if there is no sound one."""
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return None
        head = len(MAGIC) + hashlib.sha256().digest_size
        contents = data[head:]
        sound = data[:head] == MAGIC + hashlib.sha256(key.encode() + contents).digest()
        return contents if sound else None

    def write(self, key: str, contents: bytes) -> None:
        """Writes an entry. A folder that cannot be written to costs later processes time, and nothing else."""
        path = self.path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(MAGIC + hashlib.sha256(key.encode() + contents).digest() + contents)
                os.replace(draft, path)
            except OSError:
                pathlib.Path(draft).unlink(missing_ok=True)
                raise
