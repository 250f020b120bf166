"""Documents are true of the tree: links, paths, names, options and codes exist; what is marked as runnable runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import pathlib
import re

import pytest

import tpu_lowering
from tests import dotted_names, examples
from tpu_lowering import errors
from tpu_lowering.ir.chips import CHIPS
from tpu_lowering.options import Options

ROOT = pathlib.Path(__file__).parent.parent
FIRST = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [*FIRST, *sorted((ROOT / "docs").rglob("*.md"))]
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


def test_every_public_name_is_listed_with_its_arguments() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    named = [code for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for code in re.findall(r"`(.+?)`", row)]
    listed = {code.partition("(")[0]: code for code in named if "." not in code.partition("(")[0]}
    assert set(listed) == set(tpu_lowering.__all__) - {"__version__"}
    for public, code in listed.items():
        found = getattr(tpu_lowering, public)
        if "(" in code:
            plain = [one.replace(annotation=one.empty) for one in inspect.signature(found).parameters.values()]
            assert code == f"{public}{inspect.Signature(plain)}".replace("'", '"')
        assert f"::: {found.__module__}.{public}\n" in text + "\n"


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


# Blocks of code -----------------------------------------------------------------------------------------
BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:(?:[^`\n]*\n)*?<!-- prints -->\n```\n(?P<shown>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
MARKER = re.compile(r"runnable(?P<compiler> with libtpu)?(?P<later>, goes on)?|not run: .+")
BETWEEN = "\x1e"
"""What is printed between two blocks that are one program."""

WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and not {"errors", "design"} & {*page.parts}]
"""Pages whose blocks are run here; those of codes are run by ``test_error_pages.py``."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Some code of a page: whether it goes on with the program before it, what it needs, and what it prints, if said."""

    code: str
    goes_on: bool
    needs_compiler: bool
    shown: str | None


def blocks(page: pathlib.Path) -> list[Block]:
    """Those to run."""
    found: list[Block] = []
    for match in BLOCK.finditer(page.read_text()):
        marker = MARKER.fullmatch(match["marker"] or "")
        assert marker, f"{name(page)}: expected a marker, got {match['marker']!r} above\n{match['code']}"
        if not marker[0].startswith("not run"):
            found.append(Block(match["code"], bool(marker["later"]), bool(marker["compiler"]), match["shown"]))
    return found


def programs(page: pathlib.Path) -> list[list[Block]]:
    """A page's blocks, those of one program together; without what needs the TPU compiler where there is none."""
    has_compiler, found = importlib.util.find_spec("libtpu") is not None, list[list[Block]]()
    for block in blocks(page):
        if not block.goes_on:
            found.append([])
        if has_compiler or not block.needs_compiler:
            found[-1].append(block)
    return found


def folder_of(page: pathlib.Path, number: int) -> str:
    return f"{page.stem.lower()}_{number}"


@pytest.fixture(scope="module")
def came_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What comes out of every program of every page, all run in one process."""
    folder, files = tmp_path_factory.mktemp("blocks"), list[pathlib.Path]()
    for page in WITH_CODE:
        for number, program in enumerate(programs(page)):
            files.append(folder / folder_of(page, number) / "example.py")
            files[-1].parent.mkdir()
            files[-1].write_text(f"\nprint({BETWEEN!r})\n".join(block.code for block in program))
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "HF_HUB_OFFLINE": "1"}
    found = examples.run_all(files, {**os.environ, **flags}, timeout=900)
    return {pathlib.Path(file).parent.name: parts for file, parts in found.items()}


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_what_is_marked_runs_and_prints_what_is_shown(page: pathlib.Path, came_out: dict[str, dict[str, str]]) -> None:
    for number, program in enumerate(programs(page)):
        found = came_out[folder_of(page, number)]
        assert not found["error"]
        for block, printed in zip(program, found["printed"].split(f"{BETWEEN}\n"), strict=True):
            if block.shown is not None:
                assert [line.rstrip() for line in printed.splitlines()] == block.shown.splitlines()


def test_blocks_are_found() -> None:
    assert len({folder_of(page, 0) for page in WITH_CODE}) == len(WITH_CODE)
    assert sum(block.shown is not None for page in WITH_CODE for block in blocks(page)) >= 8
