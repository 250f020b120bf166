"""The store of entries: what is damaged, foreign or half written is never trusted."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import stat
import subprocess
import sys

import pytest

import tpu_lowering
from tpu_lowering.runtime.cache.store import Store, digest, package_digest

KEY = digest(["an entry"])


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(tmp_path / "entries")


def test_an_entry_comes_back_whole(store: Store) -> None:
    assert store.read(KEY) is None
    store.write(KEY, b"contents")
    assert store.read(KEY) == b"contents"
    store.write(KEY, b"")
    assert store.read(KEY) == b""


@pytest.mark.parametrize("length", [0, 1, 20, 50, 53, 60])
def test_an_entry_cut_short_is_none(store: Store, length: int) -> None:
    store.write(KEY, b"contents")
    whole = store.path(KEY).read_bytes()
    assert length < len(whole)
    store.path(KEY).write_bytes(whole[:length])
    assert store.read(KEY) is None


@pytest.mark.parametrize("at", [0, 30, -1])
def test_a_changed_byte_makes_an_entry_none(store: Store, at: int) -> None:
    store.write(KEY, b"contents")
    data = bytearray(store.path(KEY).read_bytes())
    data[at] ^= 1
    store.path(KEY).write_bytes(bytes(data))
    assert store.read(KEY) is None
    store.write(KEY, b"contents")
    assert store.read(KEY) == b"contents"


def test_an_entry_under_another_key_is_none(store: Store) -> None:
    store.write(KEY, b"contents")
    other = digest(["another entry"])
    store.path(other).parent.mkdir(parents=True, exist_ok=True)
    store.path(KEY).rename(store.path(other))
    assert store.read(other) is None


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "entries")
    store.write(KEY, b"contents")
    assert store.read(KEY) is None


def test_the_folder_is_for_its_user_alone(store: Store) -> None:
    before = os.umask(0)
    try:
        store.write(KEY, b"contents")
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777, 0o702], ids=oct)
def test_a_folder_that_others_can_write_to_is_refused(mode: int, store: Store) -> None:
    """When a store is made of it, and when it became such a folder since."""
    store.write(KEY, b"contents")
    store.folder.chmod(mode)
    for use in (lambda: Store(store.folder), lambda: store.read(KEY), lambda: store.write(KEY, b"others")):
        with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
            use()
        assert str(caught.value) == (
            f"[TL116] cache folder that others can write to: {store.folder}\n"
            "  why  expected a folder that its user alone can write to, as its programs are run as they are found, "
            f"got mode {mode:04o}\n"
            f"  fix  name a folder that is not there yet, or, if all in it is yours: chmod go-w {store.folder}"
        )
    store.folder.chmod(0o755)
    assert Store(store.folder).read(KEY) == b"contents"


def test_a_folder_of_another_user_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(KEY, b"contents")
    owner = store.folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(tpu_lowering.TpuLoweringError, match=rf"TL116.*\n.*one of user {owner}, in a process of user"):
        store.read(KEY)


def test_writers_at_once_leave_one_whole_entry(store: Store) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]

    def write_and_read(data: bytes) -> bytes | None:
        for _ in range(20):
            store.write(KEY, data)
            found = store.read(KEY)
            assert found in contents
        return store.read(KEY)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(found in contents for found in pool.map(write_and_read, contents))
    assert [path.name for path in store.path(KEY).parent.iterdir()] == [KEY], "drafts were left behind"


def test_a_digest_tells_parts_apart() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"]) != digest(["abc"])
    assert package_digest() == package_digest()


def entries(count: int) -> list[str]:
    """Keys whose writes look at the whole store, since what they write is a good part of its limit."""
    return [digest([f"entry {number}"]) for number in range(count)]


def used_at(store: Store, key: str, seconds: int) -> None:
    os.utime(store.path(key), (seconds, seconds))


def test_beyond_the_limit_the_least_recently_used_entry_goes(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path, limit=5000)
    first, second, third, fourth = entries(4)
    for at, key in enumerate((first, second, third)):
        store.write(key, bytes(1400))
        used_at(store, key, 1000 + at)
    assert store.read(first) is not None  # from now on the second is the one that was not used for the longest time
    store.write(fourth, bytes(1400))
    assert [store.read(key) is None for key in (first, second, third, fourth)] == [False, True, False, False]


def test_a_store_stays_within_its_limit(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path, limit=20_000)
    for key in entries(100):
        store.write(key, bytes(2000))
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= store.limit
        assert store.read(key) == bytes(2000)


def test_small_entries_are_counted_too(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path, limit=20_000)
    for key in entries(1000):
        store.write(key, bytes(100))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 2 * store.limit


def test_an_entry_larger_than_the_limit_is_not_kept_and_removes_none(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path, limit=5000)
    store.write(KEY, bytes(1000))
    (large,) = entries(1)
    store.write(large, bytes(5000))
    assert store.read(large) is None
    assert store.read(KEY) == bytes(1000)


def test_a_draft_that_is_being_written_stays_and_an_abandoned_one_goes(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path, limit=5000)
    drafts = [tmp_path / "00" / name for name in (".written", ".abandoned")]
    drafts[0].parent.mkdir()
    for draft in drafts:
        draft.write_bytes(bytes(3000))
    os.utime(drafts[1], (1000, 1000))
    for key in entries(3):
        store.write(key, bytes(2000))
    assert [draft.exists() for draft in drafts] == [True, False]


def test_an_entry_that_another_process_removes_is_a_miss(tmp_path: pathlib.Path) -> None:
    """A process that writes beyond the limit all the time, and one that reads: whole entries or none, and no error."""
    keys = entries(40)
    program = "import pathlib, sys\nfrom tpu_lowering.runtime.cache.store import Store\n"
    program += "store = Store(pathlib.Path(sys.argv[1]), limit=20_000)\nprint('ready', flush=True)\n"
    program += "for _ in range(10):\n    for key in sys.argv[2:]:\n        store.write(key, key.encode() * 40)\n"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path), *keys], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        store, found = Store(tmp_path, limit=20_000), [0, 0]
        while writer.poll() is None:
            for key in keys:
                contents = store.read(key)
                assert contents in (None, key.encode() * 40)
                found[contents is None] += 1
    assert writer.returncode == 0
    assert min(found) > 0, f"expected hits and misses, got {found}"


def test_the_digest_of_the_package_reads_every_module(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[pathlib.Path] = set()

    def watched(path: pathlib.Path) -> bytes:
        read.add(path)
        return b""

    monkeypatch.setattr(pathlib.Path, "read_bytes", watched)
    package_digest.__wrapped__()
    assert read == set(pathlib.Path(tpu_lowering.__file__).parent.rglob("*.py"))
