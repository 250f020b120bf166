"""What pip would install: the default releases, and never another torch over a CPU build that is there.

Pip resolves offline, with nothing to choose from but what is installed and made-up newer releases in a folder.
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tpu_lowering import releases

ROOT = pathlib.Path(__file__).parent.parent.parent
NEWER = {"torch": "2.15.0", "jax": "0.10.9", "jaxlib": "0.10.9"}
"""Releases that the ranges of pyproject.toml admit."""

pytestmark = pytest.mark.skipif(
    not releases.is_tested("torch", releases.TORCH[:1]), reason="constraints.txt is for the default releases"
)


@pytest.fixture
def newer(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of empty wheels, newer than what is installed."""
    for name, version in NEWER.items():
        described = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{described}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{described}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{described}/RECORD", "")
    return tmp_path


def required(extra: str) -> list[str]:
    """What the package needs with an extra, extras of its own included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] if not extra else project["optional-dependencies"][extra]
    found: list[str] = []
    for one in needed:
        own = re.fullmatch(r"tpu_lowering\[(.*)\]", one)
        found += [two for name in own.group(1).split(",") for two in required(name)] if own else [one]
    return found if not extra else [*required(""), *found]


def installing(wheels: pathlib.Path, *arguments: str) -> dict[str, str]:
    """The packages that pip would install, each with its version."""
    report = wheels / "report.json"
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    offline = ["--no-index", "--find-links", str(wheels), "--dry-run", "--report", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, *arguments],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env={**surroundings, "PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())["install"]
    return {package["metadata"]["name"]: package["metadata"]["version"] for package in found}


IMPORTED = """
import importlib.metadata as metadata, sys
import helion, helion.language, torch, tpu_lowering.aot, tpu_lowering.backend, tpu_lowering.__main__

def leaf(x):
    return x + 1

torch.compile(leaf, backend="helion_tpu")(torch.ones(2))
owners = metadata.packages_distributions()
print(*sorted({name for module in set(sys.modules) for name in owners.get(module.partition(".")[0], [])}))
"""


OPTIONAL = ("libtpu", "tqdm")
"""What JAX and torch import where it is installed."""


def closure(requirements: Sequence[str]) -> set[str]:
    """The packages that pip brings for requirements, as they are installed here."""
    found, waiting = set[str](), [Requirement(one) for one in requirements]
    while waiting:
        one = waiting.pop()
        wanted = [one.marker is None or one.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)]
        if not any(wanted) or (name := canonicalize_name(one.name)) in found:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            waiting += map(Requirement, metadata.requires(one.name) or [])
    return found


def test_what_is_imported_is_installed() -> None:
    """With what README.md tells people to install, and nothing that tests bring."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    brought = closure(required("helion")) | {"tpu-lowering", *OPTIONAL}
    assert {canonicalize_name(name) for name in done.stdout.split()} - brought == set()


@pytest.mark.parametrize("extra", ["", "helion", "demo", "test"])
def test_an_installed_torch_is_not_replaced(newer: pathlib.Path, extra: str) -> None:
    """What `make` runs leaves torch and JAX as they are, even where pip is told to take the newest of everything."""
    given = ["-c", "constraints.txt", *required(extra)]
    assert installing(newer, *given) == {}
    newest = installing(newer, "--upgrade", "--upgrade-strategy", "eager", *given)
    assert not newest.keys() & NEWER.keys()


def test_a_range_alone_would_take_the_newest(newer: pathlib.Path) -> None:
    """Why there is a constraints file."""
    newest = installing(newer, "--upgrade", "--upgrade-strategy", "eager", *required(""))
    assert {name: newest.get(name) for name in NEWER} == NEWER


def test_every_set_up_of_make_has_a_constraints_file() -> None:
    """Those of torch_xla have exact releases in their extra instead."""
    lines = re.findall(r".*pip install.*", (ROOT / "Makefile").read_text())
    assert len(lines) == 6
    assert all("-c constraints" in line or "[xla," in line for line in lines)


def test_constraints_are_tested_releases() -> None:
    default, newest = (
        dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("constraints.txt", "constraints-newest.txt")
    )
    tested = releases.RELEASES["torch"]
    of_models = default.pop("transformers")
    assert default == {name: tested[name][0] for name in default} and "torch" in default
    assert of_models in Requirement(releases.INSTALL["transformers"].split("'")[1]).specifier
    assert all(version in tested[name] for name, version in newest.items())
    assert newest["torch"] != default["torch"]


def test_the_ranges_admit_what_is_tested_and_no_release_below() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {found.name: found.specifier for found in map(Requirement, project["dependencies"])}
    for name in ("torch", "jax", "jaxlib"):
        tested = [version for known in releases.RELEASES.values() for version in known[name]]
        assert all(version in ranges[name] for version in tested)
    assert not any(version in ranges["torch"] for version in ("2.8.0", "2.9.1", "2.10.0", "2.12.1", "2.16.0", "2.17.0"))
    assert not any(version in ranges["jax"] for version in ("0.7.0", "0.7.2", "0.8.3", "0.9.0.1", "0.9.1", "0.11.0"))
    oldest, beyond = (".".join(map(str, version)) for version in releases.PYTHONS)
    assert project["requires-python"] == f">={oldest},<{beyond}"


def test_what_is_said_of_installing_is_true() -> None:
    """The package is on no index: nothing tells anybody to install it from one."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    said = [*documents, ROOT / "Makefile", *(ROOT / "tpu_lowering").rglob("*.py")]
    assert [path.name for path in said if re.search(r"pip install \S*tpu_lowering", path.read_text())] == []


def test_documents_and_make_name_the_tested_releases() -> None:
    table, make = (ROOT / "docs" / "releases.md").read_text(), (ROOT / "Makefile").read_text()
    for known in releases.RELEASES.values():
        for name in known.keys() & {"torch", "jax"}:
            assert all(version in table for version in known[name])
    assert {f"3.{minor}" for minor in range(releases.PYTHONS[0][1], releases.PYTHONS[1][1])} <= {
        *re.findall(r"3\.\d+", table)
    }
    assert f"torch {releases.TORCH[0]}, JAX {releases.JAX[0]}, Helion 1.5.1, transformers" in make
