"""Every code has a page; its example makes the code come out, and what mends it does not.

``EXPECTTEST_ACCEPT=1`` writes the pages of ``docs/errors/`` and the tables of ``docs/errors.md``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re

import filelock
import pytest

from tests import examples
from tpu_lowering import errors

DOCS = examples.ROOT / "docs"
MOST = max(page.devices for page in errors.pages().values())
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None


def runs(code: str) -> bool:
    page = errors.pages()[code]
    return page.run and (HAS_COMPILER or page.needs != "libtpu")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> dict[str, dict[str, str]]:
    """What comes out of every example, by code; of what mends it, by code and "fixed". Run once, for all workers."""
    kept = tmp_path_factory.getbasetemp().parent / f"examples_{testrun_uid}.json"
    with filelock.FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(run_examples(tmp_path_factory.mktemp("examples"))))
    return json.loads(kept.read_text())


def run_examples(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    files: list[pathlib.Path] = []
    for code, page in errors.pages().items():
        suffix = "sh" if page.example.startswith("python -m") else "py"
        texts = {f"{code.lower()}.{suffix}": page.example, f"{code.lower()}_fixed.py": page.fixed}
        for name, text in texts.items():
            if text and runs(code):
                files.append(folder / name)
                files[-1].write_text(text)
    flags = f"--xla_force_host_platform_device_count={MOST}"
    came_out = examples.run_all(files, {**os.environ, "XLA_FLAGS": flags}, timeout=900)
    return {pathlib.Path(file).stem: parts for file, parts in came_out.items()}


def test_every_code_has_a_page() -> None:
    assert list(errors.pages()) == sorted(errors.CODES, key=list(errors.pages()).index)
    assert all(page.cause and page.example and page.remedy.strip(".") for page in errors.pages().values())
    for digit, (name, _) in errors.GROUPS.items():
        listed = re.findall(r"^\[(TL\d+)\]", (ROOM / f"{name}.toml").read_text(), re.MULTILINE)
        assert listed == sorted(listed) and all(code.startswith(f"TL{digit}") for code in listed)


ROOM = pathlib.Path(errors.__file__).parent / "error_pages"


@pytest.mark.parametrize("code", sorted(errors.CODES))
def test_the_example_makes_the_code_come_out(code: str, found: dict[str, dict[str, str]]) -> None:
    if not runs(code):
        pytest.skip(f"needs {errors.pages()[code].needs}")
    assert code in "".join(found[code.lower()].values())


@pytest.mark.parametrize("code", sorted(code for code, page in errors.pages().items() if page.fixed))
def test_what_mends_it_works(code: str, found: dict[str, dict[str, str]]) -> None:
    came_out = found[f"{code.lower()}_fixed"]
    assert came_out["error"] == "" and code not in "".join(came_out.values())


# Documents ----------------------------------------------------------------------------------------------
def generated() -> dict[pathlib.Path, str]:
    """Every page of ``docs/errors/``, and ``docs/errors.md`` with its tables."""
    index = DOCS / "errors.md"
    sections = [index.read_text().partition("\n## ")[0].rstrip()]
    files: dict[pathlib.Path, str] = {}
    for digit, (name, title) in errors.GROUPS.items():
        codes = sorted(code for code in errors.CODES if code.startswith(f"TL{digit}"))
        head = f"# {title}\n\nThis page is written from `tpu_lowering/error_pages/{name}.toml`.\n"
        files[DOCS / "errors" / f"{name}.md"] = "\n".join([head, *(errors.page(code, 2) for code in codes)])
        rows = [f"| [{code}](errors/{name}.md#{code.lower()}) | {errors.CODES[code]} |" for code in codes]
        sections.append("\n".join([f"\n## {digit}xx: {title}\n", "| code | meaning |", "|---|---|", *rows]))
    return {index: "\n".join(sections) + "\n", **files}


def test_the_documents_say_it() -> None:
    accept = bool(os.environ.get("EXPECTTEST_ACCEPT"))
    for path, text in generated().items():
        if accept:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text
    assert set((DOCS / "errors").iterdir()) == set(generated()) - {DOCS / "errors.md"}


def test_a_text_that_is_no_code() -> None:
    assert errors.page("tl205") == errors.page("TL205")
    with pytest.raises(errors.TpuLoweringError, match="expected a code such as TL205, got 'TL999'"):
        errors.page("TL999")
