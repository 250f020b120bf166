"""What is built: the same bytes each time, with all that an installed package needs; and it works where it is alone."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SOURCES = ("builder", "tpu_lowering", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "SECURITY.md",
           "CONTRIBUTING.md", "LICENSE", "NOTICE", "constraints.txt", "constraints-newest.txt")  # fmt: skip
BUILD = "import sys; sys.path.insert(0, 'builder'); import reproducible as b; b.build_sdist('.'); b.build_wheel('.')"
EPOCH = "1780000000"


def run(*command: str | pathlib.Path, cwd: pathlib.Path, **surroundings: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SOURCE_DATE_EPOCH")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600, env={**env, **surroundings}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def sources(folder: pathlib.Path) -> pathlib.Path:
    """A copy of what the package is built of, with times of its own."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copy
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, pathlib.Path]]:
    """The archives of two builds, by the end of their names; the second of files with another time and mode."""
    found: list[dict[str, pathlib.Path]] = []
    for number in range(2):
        folder = sources(tmp_path_factory.mktemp("build") / "sources")
        for file in folder.rglob("*.py"):
            os.utime(file, (10**9 + number, 10**9 + number))
            file.chmod(0o644 if number == 0 else 0o664)
        run(sys.executable, "-c", BUILD, cwd=folder, SOURCE_DATE_EPOCH=EPOCH)
        found.append({kind: next(folder.glob(f"*{kind}")) for kind in (".whl", ".tar.gz")})
    return found


@pytest.mark.parametrize("kind", [".whl", ".tar.gz"])
def test_two_builds_are_the_same_bytes(kind: str, built: list[dict[str, pathlib.Path]]) -> None:
    first, second = (found[kind] for found in built)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_what_is_in_them(built: list[dict[str, pathlib.Path]]) -> None:
    with zipfile.ZipFile(built[0][".whl"]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    package = {name.removeprefix("tpu_lowering/") for name in names if name.startswith("tpu_lowering/")}
    wanted = {
        str(path.relative_to(ROOT / "tpu_lowering"))
        for path in (ROOT / "tpu_lowering").rglob("*")
        if path.is_file() and path.suffix in (".py", ".toml", ".typed")
    }
    assert "py.typed" in wanted and package >= wanted
    assert {name.rpartition("/")[2] for name in names if "licenses" in name} == {"LICENSE", "NOTICE"}
    assert "License-Expression: Apache-2.0" in metadata and "Typing :: Typed" in metadata
    with tarfile.open(built[0][".tar.gz"]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside >= {name for name in SOURCES if (ROOT / name).is_file()} | {"builder/reproducible.py"}
    assert not any(name.startswith("tests") for name in inside)


ALONE = """
import importlib.metadata, pathlib, sys, torch, tpu_lowering
assert pathlib.Path(tpu_lowering.__file__).is_relative_to(sys.argv[1]), tpu_lowering.__file__
assert "helion_tpu" in torch._dynamo.list_backends()
assert tpu_lowering.__version__ == next(iter(importlib.metadata.distributions(name="tpu_lowering"))).version
from tpu_lowering import errors
assert errors.page("TL205").startswith("# TL205")
x = torch.ones(3)
print(torch.compile(lambda x: x + 1, backend="helion_tpu", fullgraph=True)(x).tolist())
"""


def test_the_source_archive_is_installed_and_works_alone(
    built: list[dict[str, pathlib.Path]], tmp_path: pathlib.Path
) -> None:
    """``pip wheel`` of the unpacked source archive, installed into a folder of its own, before anything else is found."""
    with tarfile.open(built[0][".tar.gz"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    offline = ("--no-deps", "--no-index")
    run(
        *pip, "wheel", *offline, "--no-build-isolation", unpacked, "-w", tmp_path, cwd=tmp_path, SOURCE_DATE_EPOCH=EPOCH
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.read_bytes() == built[0][".whl"].read_bytes()
    target = tmp_path / "installed"
    run(*pip, "install", *offline, "--target", target, wheel, cwd=tmp_path)
    alone = {"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu", "TPU_LOG_DIR": "disabled"}
    assert run(sys.executable, "-c", ALONE, target, cwd=tmp_path, **alone) == "[2.0, 2.0, 2.0]\n"
    assert "tpu_lowering 0." in run(sys.executable, target / "bin" / "tpu-lowering", "--version", cwd=tmp_path, **alone)
