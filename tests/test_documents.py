"""Documents are true of the tree: links, paths, names, options and codes exist; what is marked as runnable runs."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from tests import dotted_names
from tpu_lowering import errors
from tpu_lowering.ir.chips import CHIPS
from tpu_lowering.options import Options

ROOT = pathlib.Path(__file__).parent.parent
FIRST = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [*FIRST, *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = re.compile(r"<!-- runnable -->\n```python\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
PATHS = re.compile(r"`((?:tpu_lowering|tests|bench|docs)/[\w./]*|[\w./]+/[\w.]+\.py)`")


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: pathlib.Path) -> set[str]:
    """What a link may name of a page: its headings, as they are spelled in a URL."""
    headings = re.findall(r"^#+ (.*)", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", FIRST, ids=name)
def test_what_is_read_first_is_short(page: pathlib.Path) -> None:
    assert len(page.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", FENCED.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        found = page if not target else page.parent / target
        assert found.is_file(), link
        assert not anchor or anchor in anchors(found), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: pathlib.Path) -> None:
    """A path is named from the root, or from the package."""
    named = PATHS.findall(page.read_text())
    assert [path for path in named if not (ROOT / path).exists() and not (ROOT / "tpu_lowering" / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_codes_exist(page: pathlib.Path) -> None:
    assert set(re.findall(r"\bTL\d{3}\b", page.read_text())) <= set(errors.CODES)


@pytest.mark.parametrize("page", PAGES[2:], ids=name)
def test_pages_are_in_the_navigation(page: pathlib.Path) -> None:
    assert f": {page.relative_to(ROOT / 'docs')}\n" in (ROOT / "mkdocs.yml").read_text()


def test_every_option_is_listed_with_its_default() -> None:
    listed = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", (ROOT / "docs" / "options.md").read_text(), re.MULTILINE)
    fields = {field.name: field.default for field in dataclasses.fields(Options)}
    assert dict(listed) == {option: repr(default).replace("'", '"') for option, default in fields.items()}


def test_every_room_is_on_the_map() -> None:
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "tpu_lowering").rglob("*.py")} - {
        pathlib.Path("tpu_lowering")
    }
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [str(room) for room in sorted(rooms) if f"{room.relative_to('tpu_lowering')}/`" not in text] == []


CHIPS_ARE_LISTED = ("README.md", "docs/devices.md", "docs/ahead_of_time.md", "tpu_lowering/aot.py")


@pytest.mark.parametrize("file", CHIPS_ARE_LISTED)
def test_every_chip_is_listed(file: str) -> None:
    listed = re.findall(rf"\b{CHIPS[0].name}(?:, \w+)+(?: or \w+)?", (ROOT / file).read_text())
    assert [re.split(", | or ", found) for found in listed] == [[chip.name for chip in CHIPS]]


def test_names_in_docstrings_exist() -> None:
    """A dotted name is one of the package, or says of which library it is."""
    found = dotted_names.Index(ROOT / "tpu_lowering")
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in found.unknown()] == []


def test_a_name_that_is_gone_is_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "one.py").write_text('"""See ``other.Gone``, ``one.here`` and ``torch.add``."""\nhere = 1\n')
    (tmp_path / "other.py").write_text('"""See ``room.one.here`` and ``room.two``."""\n')
    found = [(path.name, name) for path, name in dotted_names.Index(tmp_path).unknown()]
    assert found == [("other.py", "room.two"), ("one.py", "other.Gone")]


def test_what_is_marked_runs(tmp_path: pathlib.Path) -> None:
    """All blocks in one process, each with names of its own."""
    blocks = [
        (f"{page.stem}_{number}.py", text)
        for page in PAGES
        for number, text in enumerate(RUNNABLE.findall(page.read_text()))
    ]
    assert len(blocks) == 5
    for file, text in blocks:
        (tmp_path / file).write_text(text)
    runs = "\n".join(f"runpy.run_path({file!r})" for file, _ in blocks)
    command = [sys.executable, "-c", f"import runpy\n{runs}"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
