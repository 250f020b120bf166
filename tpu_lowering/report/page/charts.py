"""Bars of bytes, the memory over a program's operations, and the time of a compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpu_lowering.report.moved import Moved
from tpu_lowering.report.page.elements import Markup, element, joined
from tpu_lowering.report.sizes import size_text

LONGEST = 16
"""Bars of a chart; what is smaller is one more."""


def operations_chart(operations: Sequence[Moved]) -> Markup:
    """HBM bytes by operation and line: read, written."""
    sums: dict[tuple[str, str, bool], list[int]] = {}
    for one in operations:
        row = sums.setdefault((one.text, one.where, one.is_kernel), [0, 0, 0])
        for at, value in enumerate((one.read, one.written, 1)):
            row[at] += value
    rows = sorted(sums.items(), key=lambda item: -sum(item[1][:2]))
    rows = [row for row in rows if sum(row[1][:2])]
    largest = max((sum(row[:2]) for _, row in rows), default=1)
    bars = [
        _bar(
            where,
            f"{text}{' (kernel)' if is_kernel else ''}{f' × {count}' if count > 1 else ''}",
            [[("c3" if is_kernel else "c0", read), ("c1", written)]],
            largest,
            f"{size_text(read)} + {size_text(written)}",
        )
        for (text, where, is_kernel), (read, written, count) in rows[:LONGEST]
    ]
    rest = sum(sum(row[:2]) for _, row in rows[LONGEST:])
    if rest:
        name = f"{len(rows) - LONGEST} more"
        bars.append(_bar("", name, [[("c2", rest)]], largest, size_text(rest)))
    return joined(
        _legend(("c0", "read"), ("c3", "read by a kernel"), ("c1", "written")), element("ul", *bars, class_="bars")
    )


def lines_chart(before: Sequence[Moved], after: Sequence[Moved], code: Mapping[str, str]) -> Markup:
    """HBM bytes by source line, as written and compiled; ``code`` has each line's text, by ``file.py:line``."""
    sums: dict[str, list[int]] = {}
    for side, operations in enumerate((before, after)):
        for one in operations:
            sums.setdefault(one.where, [0, 0])[side] += one.nbytes
    rows = sorted(sums.items(), key=lambda item: -max(item[1]))
    rows = [row for row in rows if any(row[1])]
    largest = max((max(row) for _, row in rows), default=1)
    bars = [
        _bar(
            code.get(where, "") or ("" if where else "lost by the compiler"),
            where,
            [[("c2", written)], [("c0", compiled)]],
            largest,
            f"{size_text(written)} → {size_text(compiled)}",
        )
        for where, (written, compiled) in rows[:LONGEST]
    ]
    if len(rows) > LONGEST:
        left = [sum(row[side] for _, row in rows[LONGEST:]) for side in (0, 1)]
        text = f"{size_text(left[0])} → {size_text(left[1])}"
        bars.append(_bar("", f"{len(rows) - LONGEST} more", [[("c2", left[0])], [("c0", left[1])]], largest, text))
    return joined(_legend(("c2", "as written"), ("c0", "compiled")), element("ul", *bars, class_="bars"))


def _legend(*entries: tuple[str, str]) -> Markup:
    return element(
        "p", *(piece for kind, text in entries for piece in (element("i", class_=kind), text)), class_="legend"
    )


def _bar(below: str, name: str, tracks: Sequence[Sequence[tuple[str, int]]], largest: int, value: str) -> Markup:
    drawn = [
        element(
            "span",
            *(element("span", class_=kind, style=f"width:{100 * size / largest:.2f}%") for kind, size in track if size),
            class_="bar",
        )
        for track in tracks
    ]
    break_ = element("br") if name and below else None
    label = joined(element("code", name), break_, element("code", below, class_="dim"))
    return element(
        "li",
        element("span", label, class_="name"),
        element("span", *drawn, class_="track"),
        element("span", value, class_="value"),
        title=f"{name} {below}: {value}".strip(),
    )


def memory_chart(memory: Sequence[tuple[str, int]], peak: int) -> Markup:
    """The bytes that are taken while each operation runs, and the same as a table that opens."""
    if not memory:
        return joined()
    top = max([peak, *(nbytes for _, nbytes in memory)]) or 1
    step = 1000 / len(memory)
    corners = " ".join(
        f"L{at * step:.1f} {150 - 140 * nbytes / top:.1f} L{(at + 1) * step:.1f} {150 - 140 * nbytes / top:.1f}"
        for at, (_, nbytes) in enumerate(memory)
    )
    hits = [
        element(
            "rect",
            element("title", f"{name}: {size_text(nbytes)}"),
            class_="hit",
            x=f"{at * step:.1f}",
            y=0,
            width=f"{step:.1f}",
            height=150,
        )
        for at, (name, nbytes) in enumerate(memory)
    ]
    highest = max(memory, key=lambda pair: pair[1])
    said = f"highest at {highest[0]}: {size_text(highest[1])}; the compiler's plan: {size_text(peak)}"
    rows = [element("tr", element("td", element("code", name)), element("td", size_text(n))) for name, n in memory]
    return joined(
        element(
            "svg",
            element("path", class_="area", d=f"M0 150 {corners} L1000 150 Z"),
            *hits,
            viewBox="0 0 1000 150",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"HBM taken over the operations: {said}",
        ),
        element("p", f"From 0 to {size_text(top)}, by the sizes of live buffers; {said}.", class_="legend"),
        element("details", element("summary", "as a table"), element("table", *rows)),
    )


def times_chart(seconds: Mapping[str, float]) -> Markup:
    """One bar of what spent how much of a compilation."""
    whole = sum(seconds.values()) or 1.0
    shades = ("c0", "c1", "c3", "c2")
    shown = list(zip(shades, seconds.items(), strict=False))
    parts = [
        element("span", class_=shade, style=f"width:{100 * value / whole:.2f}%", title=f"{name}: {value:.2f} s")
        for shade, (name, value) in shown
    ]
    legend = _legend(*((shade, f"{name} {value:.2f} s") for shade, (name, value) in shown))
    return joined(element("div", *parts, class_="whole"), legend)
