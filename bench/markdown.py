"""Markdown tables that are aligned, so that they read as text too, and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence

MIB = 1 << 20
NONE = "-"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns whose cells are all numbers are aligned to the right. Ends with a newline."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    right = [all(numeric(row[i]) for row in rows) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |\n"

    rule = "".join(
        f"|{'-' * (width + 1)}{':' if at_right else '-'}" for width, at_right in zip(widths, right, strict=True)
    )
    return line(headers) + rule + "|\n" + "".join(map(line, rows))


def numeric(cell: str) -> bool:
    """Whether a cell is a number, a percentage, or the sign for none."""
    try:
        float(cell.replace(",", "").rstrip("%x"))
    except ValueError:
        return cell == NONE
    return True


def mib(count: int | None) -> str:
    """Bytes in MiB: whole numbers from 100 on, and wherever no digit is lost; else up to three digits."""
    if count is None:
        return NONE
    value = count / MIB
    if value >= 100 or abs(value - round(value)) < 5e-4:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def microseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1e6:,.1f}"


def ratio(above: float | None, below: float | None) -> str:
    """A quotient with two digits; none if a part is missing."""
    return NONE if above is None or not below else f"{above / below:.2f}"


def whole(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"
