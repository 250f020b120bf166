"""Files of programs: whatever is in one, it is read whole and right, or refused by a code, in bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import resource
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tpu_lowering
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.runtime.aot import archive
from tpu_lowering.runtime.aot.program import EntryOperation, TpuProgram, versions

OPERATION = EntryOperation("fusion.1", "fusion", "jit(f)/add", 64, 32, "operands", 0, None)
PROGRAM = TpuProgram(
    "inference_0", chips.find("v5e"), "HloModule m", (OPERATION, OPERATION),
    64, 32, 0, 0, 96, b"artifact" * 9, b"executable" * 9, "", ("key",), "",
)  # fmt: skip
MEMBERS = (archive.MANIFEST, archive.FACTS, archive.HLO, archive.ARTIFACT, archive.EXECUTABLE)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def packed(path: pathlib.Path, facts: Any, manifest: Callable[[dict[str, Any]], Any] = lambda m: m) -> pathlib.Path:
    """A file with right digests, of facts as they are given and a manifest that may be changed."""
    members = {
        archive.FACTS: facts if isinstance(facts, bytes) else json.dumps(facts).encode(),
        archive.HLO: b"HloModule m",
        archive.ARTIFACT: b"a",
        archive.EXECUTABLE: b"",
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    described = manifest({"format": archive.FORMAT, "versions": versions(), "digests": digests})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(archive.MANIFEST, described if isinstance(described, bytes) else json.dumps(described))
        for name, data in members.items():
            file.writestr(name, data)
    return path


def facts() -> dict[str, Any]:
    return json.loads(json.dumps(PROGRAM._facts()))


def refusal(path: Any) -> str:
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        tpu_lowering.load(path)
    assert caught.value.code == "TL109"
    return caught.value.refusal.reason


def test_what_is_saved_comes_back(tmp_path: pathlib.Path) -> None:
    PROGRAM.save(tmp_path / "one")
    found = tpu_lowering.load(str(tmp_path / "one"))
    assert dataclasses.asdict(found) == dataclasses.asdict(PROGRAM)
    assert dataclasses.asdict(tpu_lowering.load(packed(tmp_path / "two", facts())))["name"] == "inference_0"


def test_a_program_of_zeros_is_not_taken_for_an_attack(tmp_path: pathlib.Path) -> None:
    dataclasses.replace(PROGRAM, executable=bytes(10**6)).save(tmp_path / "zeros")
    assert tpu_lowering.load(tmp_path / "zeros").executable == bytes(10**6)


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "digests": lambda m: {**m, "digests": ["a"]},
    "only digests": lambda m: {"digests": ["a"]},
    "digests of numbers": lambda m: {**m, "digests": dict.fromkeys(m["digests"], 3)},
    "digests missing": lambda m: {name: m[name] for name in ("format", "versions")},
    "one digest missing": lambda m: {**m, "digests": {archive.FACTS: m["digests"][archive.FACTS]}},
    "another member": lambda m: {**m, "digests": {**m["digests"], "../evil": "a"}},
    "format": lambda m: {**m, "format": 1},
    "format of another type": lambda m: {**m, "format": [2]},
    "format true": lambda m: {**m, "format": 2.0},
    "versions": lambda m: {**m, "versions": {"jax": "0.0.1"}},
    "versions of another type": lambda m: {**m, "versions": 3},
    "a list": lambda m: [m],
    "null": lambda m: None,
    "no JSON": lambda m: b"{",
    "no text": lambda m: b"\xff\xfe\x00",
    "deep": lambda m: b"[" * 60_000,
    "long": lambda m: json.dumps(m).encode() + b" " * 70_000,
    "NaN": lambda m: json.dumps(m).replace(str(archive.FORMAT), "NaN", 1).encode(),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_none(name: str, tmp_path: pathlib.Path) -> None:
    refusal(packed(tmp_path / "file", facts(), MANIFESTS[name]))


VALUES = (None, True, -1.5, "3", [3], {"a": 1}, 2**80, float("nan"), "missing")
PLACES = (*facts(), *(f"chip.{field.name}" for field in dataclasses.fields(Chip)), "0.vmem_bytes")


def holder_of(changed: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    first, _, last = place.rpartition(".")
    return (changed["entry_operations"][0] if first == "0" else changed[first] if first else changed), last


def is_wrong(place: str, value: Any) -> bool:
    """Whether a value is not one that the field may have: a name may be any text, a figure any number."""
    holder, last = holder_of(facts(), place)
    if value is None and last == "link_bytes_per_second":  # which is not known of every chip
        return False
    right = (int, float) if isinstance(holder[last], float) else type(holder[last])
    if isinstance(value, bool):  # an int as well, to Python
        return right is not bool
    return value == "missing" or value != value or not isinstance(value, right)


@pytest.mark.parametrize(("place", "value"), [(p, v) for p in PLACES for v in VALUES if v == 2**80 or is_wrong(p, v)])
def test_facts_of_another_type(place: str, value: Any, tmp_path: pathlib.Path) -> None:
    changed = facts()
    holder, last = holder_of(changed, place)
    if value == "missing":
        del holder[last]
    else:
        holder[last] = value if value != 2**80 or isinstance(holder[last], int) else [value]
    refusal(packed(tmp_path / "file", changed))


def test_the_fields_of_facts_are_all_checked(tmp_path: pathlib.Path) -> None:
    assert refusal(packed(tmp_path / "more", {**facts(), "evil": 1})) == (
        "expected the facts of a program, got ValueError: other fields"
    )
    assert refusal(packed(tmp_path / "deep", b"[" * 10_000_000)).startswith("expected the facts of a program, got ")


def rezipped(path: pathlib.Path, change: Callable[[dict[str, bytes]], Any]) -> pathlib.Path:
    source = packed(path.with_suffix(".source"), facts())
    with zipfile.ZipFile(source) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_missing(name: str, tmp_path: pathlib.Path) -> None:
    assert refusal(rezipped(tmp_path / "file", lambda members: members.pop(name))) == (
        f"expected the members {', '.join((archive.MANIFEST, *archive.PROGRAM))}, got 4 others"
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_expand_are_not_read(name: str, tmp_path: pathlib.Path) -> None:
    """512 MiB of zeros in half a MiB: refused by the size that is stated, without the memory."""
    path = rezipped(tmp_path / "file", lambda members: members.pop(name))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open(name, "w") as member:
        for _ in range(512):
            member.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path) == f"expected {name} of a size that a program has, got {512 * 2**20} bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_size_that_is_not_true_is_no_way_around(tmp_path: pathlib.Path) -> None:
    """The archive states 16 bytes for a member that unpacks to 16 MiB."""
    path = rezipped(tmp_path / "file", lambda members: members.update({archive.HLO: bytes(2**24)}))
    path.write_bytes(path.read_bytes().replace((2**24).to_bytes(4, "little"), (16).to_bytes(4, "little")))
    refusal(path)


def test_two_members_of_a_name(tmp_path: pathlib.Path) -> None:
    path = packed(tmp_path / "file", facts())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr(archive.FACTS, b"{}")
    refusal(path)


@pytest.mark.parametrize("path", [None, 3, 2.5, b"bytes", [], {}, object(), "", "\0", "nowhere", "/", "a" * 5000])
def test_what_is_no_path(path: Any) -> None:
    refusal(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=JSON, described=JSON)
def test_any_json(manifest: Any, described: Any, tmp_path: pathlib.Path) -> None:
    refusal(packed(tmp_path / "file", described))
    refusal(packed(tmp_path / "file", facts(), lambda _: manifest))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(facts())), value=JSON)
def test_any_value_of_a_fact(name: str, value: Any, tmp_path: pathlib.Path) -> None:
    """It is refused, or comes back as it is."""
    path = packed(tmp_path / "file", {**facts(), name: value})
    try:
        found = tpu_lowering.load(path)
    except tpu_lowering.TpuLoweringError as error:
        assert error.code == "TL109"
    else:
        assert json.loads(json.dumps(found._facts()))[name] == value


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes(data: Any, tmp_path: pathlib.Path) -> None:
    """A few bytes of a sound file are changed, or it is cut."""
    PROGRAM.save(tmp_path / "sound")
    contents = bytearray((tmp_path / "sound").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "file").write_bytes(contents[: data.draw(st.integers(0, len(contents)))])
    try:
        found = tpu_lowering.load(tmp_path / "file")
    except tpu_lowering.TpuLoweringError as error:
        assert error.code == "TL109"
    else:
        assert dataclasses.asdict(found) == dataclasses.asdict(PROGRAM)


@pytest.mark.parametrize("path", [None, 3, "", "\0", "/", "/dev/null/file"])
def test_what_cannot_be_written(path: Any) -> None:
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        PROGRAM.save(path)
    assert caught.value.code == "TL112"
