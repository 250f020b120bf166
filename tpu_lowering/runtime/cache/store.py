"""A folder of entries that outlive the process: written whole or not at all, checked when they are read.

The folder has a limit. An entry's file says by its time of modification when it was last used; of entries beyond the
limit the least recently used go. One that another process is about to read may be among them: it reads the whole entry
or finds none.

Entries are native code that is run as it is found. So the folder is made for its user alone, and one that somebody else
owns or can write to is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence

import tpu_lowering
from tpu_lowering import errors
from tpu_lowering.options import Options

MAGIC = b"tpu_lowering entry 1\n"

ROOM = 0.1
"""The share of the limit that is free after entries had to go, so that not every write makes some go."""

LOOKS = 16
"""A write of less than this part of the limit looks at the whole folder once in so many times, by its key."""

ABANDONED = 3600.0
"""Seconds after which a draft has no process any more that writes it."""


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
    root = pathlib.Path(tpu_lowering.__file__).parent
    files = sorted(root.rglob("*.py"))
    return digest([part for file in files for part in (str(file.relative_to(root)), file.read_bytes())])


class Store:
    """Entries by key.

    An entry is replaced in one step, so readers in other processes see the old one or the new one. One that is cut
    short, that something else wrote, or that cannot be read is as good as none.
    """

    def __init__(self, folder: pathlib.Path, limit: int = Options.cache_bytes) -> None:
        """Raises TpuLoweringError: TL116 for a folder that others own or can write to, here and when it is used."""
        self.folder, self.limit = folder, limit
        check_is_own(folder)

    @staticmethod
    def of(options: Options) -> Store | None:
        """The store that options name, if they name one."""
        return Store(pathlib.Path(options.cache), options.cache_bytes) if options.cache else None

    def path(self, key: str) -> pathlib.Path:
        return self.folder / key[:2] / key

    def read(self, key: str) -> bytes | None:
        """The contents of an entry; None if there is no sound one."""
        check_is_own(self.folder)
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return None
        head = len(MAGIC) + hashlib.sha256().digest_size
        contents = data[head:]
        sound = data[:head] == MAGIC + hashlib.sha256(key.encode() + contents).digest()
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to touch
            os.utime(self.path(key))
        return contents if sound else None

    def write(self, key: str, contents: bytes) -> None:
        """Writes an entry. A folder that cannot be written to costs later processes time, and nothing else, and so does
        an entry that is larger than the limit: it is not kept."""
        path = self.path(key)
        size = len(MAGIC) + hashlib.sha256().digest_size + len(contents)
        if size > self.limit:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
            check_is_own(self.folder)
            path.parent.mkdir(exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(MAGIC + hashlib.sha256(key.encode() + contents).digest() + contents)
                os.replace(draft, path)
            except OSError:
                pathlib.Path(draft).unlink(missing_ok=True)
                raise
            if size * LOOKS >= self.limit or int(key[-2:], 16) % LOOKS == 0:
                self._evict(keep=path)

    def _evict(self, keep: pathlib.Path) -> None:
        """Removes the least recently used entries, if all together are larger than the limit."""
        found = sorted(_files(self.folder))
        excess = sum(size for _, size, _ in found) - self.limit
        if excess <= 0:
            return
        excess += int(self.limit * ROOM)
        for _, size, path in found:
            if excess <= 0:
                return
            if path != str(keep):
                with contextlib.suppress(OSError):  # another process was first
                    os.unlink(path)
                excess -= size


def check_is_own(folder: pathlib.Path) -> None:
    """Checks that nobody but this process's user can put entries into a folder. One that is not there is fine.

    Raises:
        TpuLoweringError: TL116.
    """
    try:
        facts = folder.stat()
    except OSError:
        return
    own = getattr(os, "geteuid", lambda: facts.st_uid)()  # Windows has none, and no such modes
    if facts.st_uid != own:
        got = f"one of user {facts.st_uid}, in a process of user {own}"
    elif os.name == "posix" and facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        got = f"mode {stat.S_IMODE(facts.st_mode):04o}"
    else:
        return
    raise errors.refuse(
        "TL116",
        str(folder),
        f"expected a folder that its user alone can write to, as its programs are run as they are found, got {got}",
        f"name a folder that is not there yet, or, if all in it is yours: chmod go-w {shlex.quote(str(folder))}",
    )


def _files(folder: pathlib.Path) -> Iterator[tuple[float, int, str]]:
    """When each file of a store was last used, its bytes, its path; without drafts that are being written."""
    for part in os.scandir(folder):
        if not part.is_dir():
            continue
        for entry in os.scandir(part.path):
            with contextlib.suppress(OSError):
                facts = entry.stat()
                if not entry.name.startswith(".") or facts.st_mtime < time.time() - ABANDONED:
                    yield facts.st_mtime, facts.st_size, entry.path
