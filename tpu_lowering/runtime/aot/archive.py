"""The file of a compiled program, or of a step: a ZIP archive of which nothing is believed, unpickled or executed.

A member is read when the size that the archive states is one that a program may have, and never past it: the manifest
first, which says whether to read on. Values are what their types say, or the file is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import types
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from tpu_lowering import errors, offenders

FORMAT = 6
MANIFEST, FACTS, HLO = "manifest.json", "facts.json", "optimised.hlo"
ARTIFACT, EXECUTABLE = "program.jax_export", "executable.bin"
MIB = 2**20
PROGRAM = {FACTS: 64 * MIB, HLO: 1024 * MIB, ARTIFACT: 4096 * MIB, EXECUTABLE: 4096 * MIB}
"""The members of a program, and how many bytes each may have."""
SAVED = "saved.json"
DIRECTIONS = ("forward", "backward")
STEP = {SAVED: 64 * MIB, **{f"{part}.{name}": size for part in DIRECTIONS for name, size in PROGRAM.items()}}
"""The members of a step."""
EXPANDS = 32
"""How many times larger a member may be than what the archive holds of it; what packs better is written as it is."""

Path = str | os.PathLike[str]


def damaged(path: object, reason: str) -> errors.TpuLoweringError:
    """The refusal of a file."""
    again = "save the program again with TpuProgram.save(path)"
    return errors.refuse("TL109", _named(path), f"expected {reason}", again)


def _named(path: object) -> str:
    return str(path) if isinstance(path, (str, os.PathLike)) else offenders.shown(path)


def others(path: object, members: Mapping[str, int], names: Sequence[str]) -> errors.TpuLoweringError:
    """The refusal of a file with other members."""
    for kind, what, loader in ((PROGRAM, "a program", "load(path)"), (STEP, "a step", "TpuStep.load(path)")):
        if sorted(names) == sorted((MANIFEST, *kind)):
            reason = f"expected {'a step' if kind is PROGRAM else 'a program'}, got {what}"
            return errors.refuse("TL109", _named(path), reason, f"read it with tpu_lowering.{loader}")
    return damaged(path, f"the members {', '.join((MANIFEST, *members))}, got {len(names)} others")


def write(path: Path, members: Mapping[str, bytes], versions: Mapping[str, str]) -> None:
    """Writes an archive.

    Raises:
        TpuLoweringError: TL112 if there cannot be such a file.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = json.dumps({"format": FORMAT, "versions": dict(versions), "digests": digests}).encode()
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in {MANIFEST: manifest, **members}.items():
                file.writestr(name, data, zipfile.ZIP_DEFLATED)
                if file.getinfo(name).compress_size * EXPANDS < len(data):
                    raise _PacksWell(name)
    except _PacksWell:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for name, data in {MANIFEST: manifest, **members}.items():
                file.writestr(name, data)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise errors.wrong_argument(
            offenders.shown(path), f"the name of a file that can be written, got {type(error).__name__}: {error}",
            "program.save('program.tpu')",
        ) from error  # fmt: skip


class _PacksWell(Exception):
    """A member packs so well that a reader would take it for an attack."""


def read(path: Path, versions: Mapping[str, str], members: Mapping[str, int]) -> dict[str, bytes]:
    """The members of an archive, without the manifest: ``PROGRAM`` or ``STEP``.

    Raises:
        TpuLoweringError: TL109.
    """
    try:
        with zipfile.ZipFile(pathlib.Path(path)) as file:
            sizes = _sizes(path, file, members)
            manifest = parsed(_member(file, MANIFEST, sizes[MANIFEST]))
            _check_manifest(path, manifest, versions, members)
            found = {name: _member(file, name, size) for name, size in sizes.items() if name != MANIFEST}
    except errors.TpuLoweringError:
        raise
    except Exception as error:  # a crafted archive can raise anything; nothing of it was used
        raise damaged(path, f"a file saved by TpuProgram.save, got {type(error).__name__}: {error}") from error
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != manifest["digests"][name]:
            raise damaged(path, f"{name} with digest {manifest['digests'][name][:12]}, got other contents")
    return found


def _sizes(path: Path, file: zipfile.ZipFile, members: Mapping[str, int]) -> dict[str, int]:
    """The size of each member, as the archive states it."""
    found, limits = file.infolist(), {MANIFEST: MIB // 16, **members}
    if sorted(info.filename for info in found) != sorted(limits):
        raise others(path, members, [info.filename for info in found])
    for info in found:
        if info.file_size > min(limits[info.filename], EXPANDS * info.compress_size + 1024):
            raise damaged(path, f"{info.filename} of a size that a program has, got {info.file_size} bytes")
    return {info.filename: info.file_size for info in found}


def _member(file: zipfile.ZipFile, name: str, size: int) -> bytes:
    with file.open(name) as member:
        data = member.read(size + 1)
    if len(data) != size:
        raise ValueError(f"expected {name} of {size} bytes, got another size")
    return data


def _check_manifest(path: Path, manifest: Any, versions: Mapping[str, str], members: Mapping[str, int]) -> None:
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise damaged(path, "a manifest with a format, got something else")
    if type(manifest["format"]) is not int or manifest["format"] != FORMAT:
        raise damaged(path, f"format {FORMAT}, got {str(manifest['format'])[:40]}")
    digests: Any = manifest.get("digests")
    complete = isinstance(digests, dict) and set(digests) == set(members)
    if not complete or not all(isinstance(digest, str) for digest in digests.values()):
        raise damaged(path, "a digest for each member, got something else")
    if manifest.get("versions") != dict(versions):
        raise damaged(path, f"versions {dict(versions)}, got {str(manifest.get('versions'))[:200]}")


def parsed(data: bytes) -> Any:
    """JSON with finite numbers.

    Raises:
        ValueError: it is none, or is nested too deep.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"expected a finite number, got {name}")

    try:
        return json.loads(data, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("expected JSON of a few levels, got too many") from error


def typed(hint: Any, value: Any) -> Any:
    """A value read from JSON, as its type says.

    Args:
        hint: bool, int, float, str, None, a union, ``tuple[T, ...]``, or a dataclass of such fields.
        value: the value.

    Raises:
        ValueError: it is of another type, or a dataclass has other fields.
    """
    if dataclasses.is_dataclass(hint):
        hints = {field.name: get_type_hints(hint)[field.name] for field in dataclasses.fields(hint)}
        if not isinstance(value, dict) or set(value) != set(hints):
            raise ValueError(f"expected the fields of {getattr(hint, '__name__', hint)}, got {str(value)[:60]}")
        made: Any = hint
        return made(**{name: typed(inner, value[name]) for name, inner in hints.items()})
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {str(value)[:60]}")
        return tuple(typed(get_args(hint)[0], element) for element in value)
    kinds = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"expected {hint}, got {str(value)[:60]}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("expected an integer of 64 bits, got a larger one")
    return value
