"""A program's graph as it was written and as it was compiled, side by side: programs, kernels, allocations, aliases."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from tpu_lowering import errors
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.report.boxes import Box, ProgramGraphs
from tpu_lowering.report.page.elements import Markup, element, joined
from tpu_lowering.report.sizes import size_text

SHOWN = frozenset(("allocation", "fill", "kernel", "generated", "collective", "control flow"))
"""Kinds that have a box of their own. Runs of others are one that opens."""
NAMED = 6
"""Operations of a run that are named before it is opened."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One of a program's two graphs.

    Attributes:
        program: the program's name.
        letter: "w" for as written, "c" for compiled; part of the anchors.
        boxes: the graph.
        others: names of the other side's boxes.
        in_place: kernel calls of the other side, with what they write in place there.
        remarks: what is known of a node, by its name.
    """

    program: str
    letter: str
    boxes: tuple[Box, ...]
    others: frozenset[str]
    in_place: dict[str, tuple[str, ...]]
    remarks: dict[str, list[Remark]]

    def anchor(self, name: str) -> str:
        return f"{self.program}-{self.letter}-{name}"

    def gone(self, box: Box) -> bool:
        """Whether a box is not on the other side."""
        return box.name not in self.others


def graphs_section(graphs: ProgramGraphs, remarks: Iterable[Remark]) -> Markup:
    """Both graphs of a program; ``remarks`` are those of all programs."""
    known: dict[str, list[Remark]] = {}
    for remark in remarks:
        if remark.program == graphs.program:
            known.setdefault(remark.node, []).append(remark)
    written, compiled = (
        Side(
            graphs.program,
            letter,
            boxes,
            frozenset(box.name for box in others),
            {box.name: box.written for box in others if box.kind == "kernel"},
            known,
        )
        for letter, boxes, others in (
            ("w", graphs.written, graphs.compiled),
            ("c", graphs.compiled, graphs.written),
        )
    )
    before = len({box.part for box in graphs.written if box.part is not None})
    titles = (f"As written: {_programs(before)} by torch_tpu's split rule", "Compiled: one XLA program")
    columns = (
        element("div", element("p", title, class_="dim"), *_parts(side))
        for title, side in zip(titles, (written, compiled), strict=True)
    )
    return element("section", element("h3", graphs.program), element("div", *columns, class_="sides"))


def _programs(count: int) -> str:
    return "1 program" if count == 1 else f"{count} programs"


def _parts(side: Side) -> list[Markup]:
    """The programs of a side as frames, with the cuts between them."""
    count = len({box.part for box in side.boxes if box.part is not None})
    pieces: list[Markup] = []
    groups = itertools.groupby(_with_parts(side.boxes), key=lambda pair: pair[0])
    for number, (_, boxes) in enumerate(groups, 1):
        label = f"program {number} of {count}" if count > 1 else ""
        if pieces:
            pieces.append(element("div", "✂ torch_tpu cuts here", class_="cut"))
        inside = _items(side, [box for _, box in boxes])
        pieces.append(element("div", element("div", label, class_="label") if label else None, *inside, class_="part"))
    return pieces


def _with_parts(boxes: Sequence[Box]) -> list[tuple[int, Box]]:
    """Each box with its program; what computes nothing is in that of the box before it."""
    current = next((box.part for box in boxes if box.part is not None), 0)
    found: list[tuple[int, Box]] = []
    for box in boxes:
        current = current if box.part is None else box.part
        found.append((current or 0, box))
    return found


def _items(side: Side, boxes: Sequence[Box]) -> list[Markup]:
    """Boxes, and runs of what has none of its own."""
    items: list[Markup] = []
    for shown, group in itertools.groupby(boxes, key=lambda box: box.kind in SHOWN):
        members = list(group)
        if shown:
            items += [_box(side, box) for box in members]
        else:
            items += [_run(side, kind, list(run)) for kind, run in itertools.groupby(members, key=_run_kind)]
    return [item for item in items if item]


def _run_kind(box: Box) -> str:
    return box.kind if box.kind in ("argument", "result") else "operation"


def _run(side: Side, kind: str, boxes: Sequence[Box]) -> Markup:
    if kind == "result":
        given = boxes[0].operands
        names = ", ".join(given[:NAMED]) + (f", and {len(given) - NAMED} more" if len(given) > NAMED else "")
        return element("div", f"gives {names or 'nothing'}", class_="run", id=side.anchor(boxes[0].name))
    texts = [box.name if kind == "argument" else box.text for box in boxes]
    more = f", and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    plural = "" if len(boxes) == 1 else "s"
    title = f"{len(boxes)} {kind}{plural}: {', '.join(texts[:NAMED])}{more}"
    lines = [
        element(
            "li",
            element("code", f"{box.name}: {box.type}" + ("" if kind == "argument" else f" = {box.text}")),
            joined(" of ", *_links(side, box.operands)) if box.operands else None,
            element("code", box.where, class_="where"),
            id=side.anchor(box.name),
        )
        for box in boxes
    ]
    return element("details", element("summary", title), element("ul", *lines), class_="run")


def _box(side: Side, box: Box) -> Markup:
    """A kernel, an allocation and the like."""
    remarks = side.remarks.get(box.name, [])
    memory = box.kind in ("allocation", "fill")
    removed = memory and side.letter == "w" and side.gone(box)
    state = "removed" if removed else "kept" if any(remark.code for remark in remarks) else ""
    name = element("s", box.name) if removed else box.name
    title = box.kind if box.kind != "generated" else "generated kernel"
    summary = element(
        "summary",
        element("b", name if memory else box.text),
        f" {title}, {box.type}" + (f", {size_text(box.nbytes)}" if memory else ""),
        element("span", f" of {', '.join(box.operands)}", class_="dim") if box.operands else None,
        *_badges(side, box, state),
        element("code", box.where, class_="where") if box.where else None,
    )
    hover = "\n".join(filter(None, [box.where, *(f"{one.code} {one.reason}" for one in remarks)]))
    facts = [*_facts(side, box), *(fact for remark in remarks for fact in _of_remark(remark))]
    inside = [item for key, value in facts for item in (element("dt", key), element("dd", value))]
    classes = " ".join(filter(None, ("box", box.kind.replace(" ", "-"), state)))
    opened = side.letter == "c" and any(remark.code for remark in remarks)
    return element(
        "details", summary, element("dl", *inside), class_=classes, id=side.anchor(box.name), title=hover, open=opened
    )


def _badges(side: Side, box: Box, state: str) -> list[Markup]:
    badges: list[Markup] = []
    if state == "removed":
        badges.append(element("span", "removed", class_="badge bad"))
    if box.kind in ("allocation", "fill") and state == "kept":
        badges.append(element("span", "stays", class_="badge warn"))
    for name in box.written:
        badges.append(element("span", f"writes {name} in place", class_="badge warn"))
    if side.letter == "c" and len(side.in_place.get(box.name, ())) > len(box.written):
        badges.append(element("span", "fresh result", class_="badge good"))
    if box.kind == "generated":
        badges.append(element("span", "new", class_="badge new"))
    return badges


def _facts(side: Side, box: Box) -> list[tuple[str, Markup]]:
    facts = [("operator", joined(box.text)), ("node", joined(box.name)), ("bytes", joined(size_text(box.nbytes)))]
    if box.operands:
        facts.append(("takes", joined(*_links(side, box.operands))))
    return facts


def _of_remark(remark: Remark) -> list[tuple[str, Markup]]:
    facts = [
        ("code", joined(f"{remark.code}: {errors.CODES.get(remark.code, '')}") if remark.code else None),
        ("why", joined(remark.reason) if remark.reason else None),
        ("what to do", joined(remark.remedy) if remark.remedy else None),
    ]
    return [(key, value) for key, value in facts if value is not None]


def _links(side: Side, names: Sequence[str]) -> list[str]:
    there = {box.name for box in side.boxes}
    links = [element("a", name, href=f"#{side.anchor(name)}") if name in there else name for name in names]
    return [piece for link in links for piece in (", ", link)][1:]
