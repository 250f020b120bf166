"""The report as a page: valid, without network or script, escaped; and as a browser shows it, where there is one."""

from __future__ import annotations

import dataclasses
import html.parser
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest

import tpu_lowering
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.report.boxes import Box, ProgramGraphs
from tpu_lowering.report.findings import CompilerView, Direction
from tpu_lowering.report.moved import Moved
from tpu_lowering.report.sizes import names_text

SCRIPT = "<script>alert('x')</script>"
LINE = f'model.py:12 in forward: out = torch.empty_like(x)  # {SCRIPT} & "quoted"'
F32 = "f32[8, 128]"


def boxes(removed: bool) -> tuple[Box, ...]:
    kernel = Box(
        "kernel_call", "kernel", "exp_into", F32, 4096, "model.py:13 in forward: exp_into(x, out)",
        ("x",) if removed else ("x", "empty_like"), () if removed else ("empty_like",), 0 if removed else 1,
    )  # fmt: skip
    made = Box("empty_like", "allocation", "empty_like", F32, 4096, LINE, (), (), 0)
    x = Box("x", "argument", "argument", F32, 4096, LINE, ())
    last = (
        Box("add", "operation", "add", F32, 4096, LINE, ("kernel_call",), (), 0 if removed else 2),
        Box("output", "result", "result", "", 0, "", ("add",)),
    )
    return (x, kernel, *last) if removed else (x, made, kernel, *last)


DIRECTION = Direction(
    "forward", (3, 1), (32768, 16384), (8192, 8192), (3, 1),
    (
        (Moved("broadcast", "broadcast", "model.py:12", 0, 4096, False, None),),
        (Moved("exp_into.1", "exp_into", "model.py:13", 4096, 4096, True, 1000),),
    ),
    (("exp_into.1", 8192), ("add.1", 4096)),
)  # fmt: skip
REPORT = tpu_lowering.Report(
    programs_before=3,
    programs_after=1,
    kernel_calls=1,
    allocations_removed=1,
    fills_removed=0,
    bytes_saved=8192,
    removed=(Remark("empty_like", "inference_0", LINE, 4096),),
    allocations_kept=(),
    aliases_kept=(),
    notes=(Remark("kernel_call", "inference_0", LINE, 4096, "TL504", f"reads {SCRIPT}", "initialise it"),),
    programs=("inference_0",),
    draws=(),
    seconds={"lower": 0.01, "compile": 0.2},
    chip=CompilerView.of("tpu7x", [DIRECTION]),
    graph_breaks=(Remark("graph break", "", LINE, 0, "TL515", "print", "do not print"),),
    refused=(Remark(SCRIPT, "tpu7x", LINE, 0, "TL601", "too much VMEM", "smaller blocks"),),
    graphs=(ProgramGraphs("inference_0", boxes(False), boxes(True)),),
    compile_seconds={"Dynamo": 1.0, "AOTAutograd": 0.5, "tpu_lowering": 0.25, "XLA": 0.25},
)


class Read(html.parser.HTMLParser):
    """Elements and their attributes; fails on one that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} twice"
        self.found.append((tag, dict(attrs)))
        if tag not in ("br", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture
def page(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "report.html"
    REPORT.save(path)
    return path.read_text()


def test_the_page_is_valid_and_links_lead_somewhere(page: str) -> None:
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    read = Read(page)
    names = [attributes["id"] for _, attributes in read.found if "id" in attributes]
    assert len(names) == len(set(names))
    links = [attributes["href"] for tag, attributes in read.found if tag == "a"]
    assert links and {link.removeprefix("#") for link in links} <= set(names)


def test_the_page_needs_no_network_and_no_script(page: str) -> None:
    read = Read(page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in read.found}
    assert "http" not in page and "url(" not in page and "@import" not in page
    assert not [name for _, attributes in read.found for name in attributes if name.startswith("on")]


def test_text_of_the_users_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert SCRIPT in Read(page).text  # it is shown, as text


def test_what_was_removed_is_struck_through_and_a_box_says_why(page: str) -> None:
    assert re.search(r"<s>empty_like</s>", page)
    text = Read(page).text
    assert "program 1 of 3" in text and "torch_tpu cuts here" in text
    assert "writes empty_like in place" in text and "fresh result" in text
    assert "TL504: buffer fresh, but the kernel reads it before writing" in text and "initialise it" in text
    assert "TL515" in text and "TL601" in text and "too much VMEM" in text


def test_bytes_memory_and_times_are_drawn(page: str) -> None:
    text = Read(page).text
    assert "HBM bytes by source line" in text and "4.0 KiB → 0 B" in text
    assert "exp_into (kernel)" in text and "4.0 KiB + 4.0 KiB" in text
    assert "highest at exp_into.1: 8.0 KiB" in text
    assert "Dynamo 1.00 s" in text and "XLA 0.25 s" in text


def test_keyboard_and_colours(page: str) -> None:
    """What opens is a ``details``, which a keyboard reaches; both schemes have all colours."""
    tags = [tag for tag, _ in Read(page).found]
    assert tags.count("details") == tags.count("summary") > 5
    light, _, dark = page.partition("prefers-color-scheme:dark){.tpl{")
    colours = re.findall(r"(--\w+):", dark.partition("}}")[0])
    assert set(colours) == set(re.findall(r"(--\w+):", light))


def test_a_notebook_shows_a_fragment() -> None:
    shown = REPORT._repr_html_()
    assert shown.startswith('<div class="tpl">')
    Read(shown)


def test_a_report_of_nothing_has_a_page() -> None:
    Read(dataclasses.replace(REPORT, graphs=(), chip=None, compile_seconds={}, programs=(), notes=())._repr_html_())


def test_several_values_are_named_as_one() -> None:
    assert [names_text(names) for names in (["mm_2"], ["mm", "mm_2"], ["mm", "exp_1", "add"])] == [
        "mm_2", "2 × mm", "3 values",
    ]  # fmt: skip


def test_what_has_no_reason_is_grouped_by_line_the_largest_first() -> None:
    saved = [Remark(f"mm_{at}", "forward_0", f"model.py:{at % 2}", 1024 * (at + 1)) for at in range(4)]
    text = Read(dataclasses.replace(REPORT, saved=tuple(saved))._repr_html_()).text
    section = text.rpartition("Saved for the backward (4)")[2]
    assert section.index("2 × mm") < section.index("6.0 KiB") < section.index("model.py:1")
    assert section.index("model.py:1") < section.index("4.0 KiB") < section.index("model.py:0")


def test_the_list_of_contents_leads_to_every_heading(page: str) -> None:
    headings = [given["id"] for name, given in Read(page).found if name == "h2"]
    links = [given["href"] for name, given in Read(page).found if name == "a"]
    assert headings and [f"#{one}" for one in headings] == links[: len(headings)]
    assert len(set(headings)) == len(headings)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        REPORT.save(tmp_path / "missing" / "report.html")
    assert caught.value.code == "TL112"


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="TL105: expected chromium on the path, got none")
def test_a_browser_shows_it(tmp_path: pathlib.Path) -> None:
    assert BROWSER is not None
    REPORT.save(tmp_path / "report.html")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", f"file://{tmp_path / 'report.html'}",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "<script" not in run.stdout
    assert Read(run.stdout).text.split() == Read((tmp_path / "report.html").read_text()).text.split()
