"""The store of entries: what is damaged, foreign or half written is never trusted."""

from __future__ import annotations

import concurrent.futures
import pathlib

import pytest

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
