"""The page: what was found, in the order in which one asks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from tpu_lowering import errors
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.report.boxes import ProgramGraphs
from tpu_lowering.report.findings import CompilerView, Direction
from tpu_lowering.report.page import charts
from tpu_lowering.report.page.elements import Markup, element
from tpu_lowering.report.page.graphs import graphs_section
from tpu_lowering.report.page.style import STYLE
from tpu_lowering.report.sizes import names_text, size_text

OPEN = 4
"""Remarks of a section that are open from the start, if there are no more."""


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        headline: the report in a few words.
        programs: names of the programs.
        rows: of the summary: what, as written, compiled; where the latter two are "" a heading.
        sections: remarks under their titles.
        graphs: each program's graphs.
        chip: the TPU compiler's view, or None.
        compile_seconds: by whom.
        stage_seconds: of this package's stages.
    """

    headline: str
    programs: tuple[str, ...]
    rows: Sequence[tuple[str, str, str]]
    sections: Sequence[tuple[str, tuple[Remark, ...]]]
    graphs: Sequence[ProgramGraphs]
    chip: CompilerView | None
    compile_seconds: Mapping[str, float]
    stage_seconds: Mapping[str, float]

    @property
    def remarks(self) -> list[Remark]:
        return [remark for _, remarks in self.sections for remark in remarks]

    def anchor(self, title: str) -> str:
        """Where a heading is. A notebook has several pages as one, so the first program's name is part of it."""
        return "-".join((*self.programs[:1], *re.findall(r"\w+", title.lower())))

    def heading(self, title: str, count: int = 0) -> Markup:
        """A heading that the page's list of contents leads to."""
        return element("h2", f"{title} ({count})" if count else title, id=self.anchor(title))


def document(page: Page) -> str:
    """The page as a whole HTML document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"tpu_lowering: {page.headline}"),
        element("style", Markup("body{margin:0}@media (prefers-color-scheme:dark){body{background:#12161c}}")),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', fragment(page, 'main')), lang='en')}\n"


def fragment(page: Page, name: str = "div") -> Markup:
    """The page as one element, with its style in it."""
    return element(
        name,
        element("style", Markup(STYLE)),
        element("h1", page.headline),
        element("p", "tpu_lowering: ", element("code", ", ".join(page.programs)), class_="dim"),
        _summary(page.rows),
        _contents(page),
        *_refusals(page),
        *_graphs(page),
        *_chip(page),
        *_sections(page),
        *_times(page),
        class_="tpl",
    )


def _summary(rows: Sequence[tuple[str, str, str]]) -> Markup:
    head = element("tr", *(element("th", text, scope="col") for text in ("", "as written", "compiled")))
    body = [
        element("tr", *(element("td", cell) for cell in row), class_="" if any(row[1:]) else "head") for row in rows
    ]
    return element("div", element("table", head, *body), class_="scroll")


def _contents(page: Page) -> Markup:
    """What is on the page, in its order: a graph may take many screens."""
    shown = {title: len(remarks) for title, remarks in page.sections if remarks}
    titles = [(title, count) for title, count in shown.items() if title in FIRST]
    titles += [(GRAPHS, 0)] if page.graphs else []
    titles += [(f"On {page.chip.target}", 0)] if page.chip is not None else []
    titles += [(title, count) for title, count in shown.items() if title not in FIRST]
    titles += [(TIMES, 0)] if page.compile_seconds else []
    links = [
        element("a", f"{title} ({count})" if count else title, href=f"#{page.anchor(title)}") for title, count in titles
    ]
    return element("nav", *(piece for link in links for piece in (" ", link)), aria_label="contents")


GRAPHS, TIMES = "The graph, before and after", "Compile time"
FIRST = ("Refused", "Graph breaks", "Run in eager torch")
"""Sections that stand before the graphs: they say why there are so many, or none."""


def _refusals(page: Page) -> list[Markup]:
    return [_section(page, title, remarks) for title, remarks in page.sections if title in FIRST and remarks]


def _sections(page: Page) -> list[Markup]:
    return [_section(page, title, remarks) for title, remarks in page.sections if title not in FIRST and remarks]


def _section(page: Page, title: str, remarks: Sequence[Remark]) -> Markup:
    """Remarks, those with the same code, reason and remedy as one; without these, those of the same line, the largest
    first."""
    groups: dict[tuple[str, ...], list[Remark]] = {}
    for remark in remarks:
        said = (remark.code, remark.reason, remark.remedy)
        groups.setdefault(said if any(said) else (remark.where,), []).append(remark)
    if not any(remark.code or remark.reason for remark in remarks):
        groups = dict(sorted(groups.items(), key=lambda item: -_bytes(item[1])))
    opened = len(groups) <= OPEN
    return element(
        "section",
        page.heading(title, len(remarks)),
        *(_remark(members, opened, "target" if title == "Refused" else "programs") for members in groups.values()),
    )


def _remark(members: Sequence[Remark], opened: bool, programs: str) -> Markup:
    first = members[0]
    meaning = errors.CODES.get(first.code, "")
    code = element("span", first.code, class_="badge warn", title=meaning) if first.code else None
    size = element("span", f" {size_text(_bytes(members))}", class_="dim") if _bytes(members) else None
    places = _places(members)
    inside = [
        ("code", f"{first.code}: {meaning}" if first.code else ""),
        ("why", first.reason),
        ("what to do", first.remedy),
        ("nodes", ", ".join(dict.fromkeys(one.node for one in members)) if len(members) > 1 else ""),
        (programs, ", ".join(dict.fromkeys(one.program for one in members if one.program))),
    ]
    facts = [item for key, text in inside if text for item in (element("dt", key), element("dd", text))]
    names = names_text([one.node for one in members])
    return element(
        "details",
        element("summary", element("b", names), size, code, *places),
        element("dl", *facts),
        class_="remark",
        open=opened,
    )


def _bytes(members: Iterable[Remark]) -> int:
    return sum(one.nbytes for one in members)


def _places(members: Iterable[Remark]) -> list[Markup]:
    return [element("code", where, class_="where") for where in dict.fromkeys(one.where for one in members)]


def _graphs(page: Page) -> list[Markup]:
    if not page.graphs:
        return []
    about = (
        "Programs are frames. Kernels, allocations and what is written in place are boxes; what was removed is struck "
        "through. A box opens to its operands, its code, the reason and the remedy. Other operations are folded."
    )
    whose = None if page.chip is None else f" The graphs are those for {page.chip.target}."
    return [
        page.heading(GRAPHS),
        element("p", about, whose, class_="dim"),
        *(graphs_section(graphs, page.remarks) for graphs in page.graphs),
    ]


def _chip(page: Page) -> list[Markup]:
    chip = page.chip
    if chip is None:
        return []
    code = _code(page.graphs)
    said = "As libtpu compiles it. Nothing here was measured on a TPU."
    return [
        page.heading(f"On {chip.target}"),
        element("p", said, f" Generated kernels: {chip.fusion}." if chip.fusion else None, class_="dim"),
        *(piece for direction in chip.directions for piece in _direction(direction, code)),
    ]


def _direction(direction: Direction, code: Mapping[str, str]) -> list[Markup]:
    before, after = direction.operations
    name = direction.name.capitalize()
    return [
        element("h3", f"{name}: HBM bytes by source line"),
        charts.lines_chart(before, after, code),
        element("h3", f"{name}: HBM bytes by operation, compiled"),
        charts.operations_chart(after),
        element("h3", f"{name}: memory over the operations, compiled"),
        charts.memory_chart(direction.memory, direction.peak_bytes[1]),
    ]


def _code(graphs: Sequence[ProgramGraphs]) -> dict[str, str]:
    """The text of each source line that a graph comes from, by ``file.py:line``."""
    found: dict[str, str] = {}
    for graph in graphs:
        for box in (*graph.written, *graph.compiled):
            line, _, rest = box.where.partition(" in ")
            function, _, text = rest.partition(": ")
            found.setdefault(line, text or function)
    return found


def _times(page: Page) -> list[Markup]:
    if not page.compile_seconds:
        return []
    rows = [
        element("tr", element("td", element("code", stage)), element("td", f"{seconds * 1e3:.1f} ms"))
        for stage, seconds in page.stage_seconds.items()
    ]
    pieces = [
        page.heading(TIMES),
        None if page.chip is None else element("p", "For the CPU; libtpu's is not in it.", class_="dim"),
        charts.times_chart(page.compile_seconds),
        element("details", element("summary", "by stage of this package"), element("table", *rows)),
    ]
    return [piece for piece in pieces if piece is not None]
