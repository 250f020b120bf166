"""What ``plan`` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tpu_lowering.report.plan import BYTES, MEMORY, Plan, Sizes
from tpu_lowering.report.sizes import size_text


def show(found: Plan, console: Console) -> None:
    """Prints the meshes that the model was held against, and those that it says something of."""
    console.print(_checks(found))
    console.print(_rows(found))


def _name(found: Plan, sizes: Sizes) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in zip(found.axes, sizes, strict=True))


def _checks(found: Plan) -> Table:
    fitted = "; ".join(_name(found, sizes) for sizes in found.compiled)
    table = Table(title=f"The model against what libtpu says for {found.chip.name}", title_justify="left")
    table.add_column("compiled, not fitted to")
    for heading in ("peak", "model", "HBM bytes", "model", "sent", "model"):
        table.add_column(heading, justify="right")
    for sizes, true in found.checked.items():
        pairs = zip((true.peak_bytes, true.hbm_bytes, true.all_sent_bytes), found.misses(sizes), strict=True)
        cells = [cell for value, miss in pairs for cell in (size_text(int(value)), f"{miss:+.1%}")]
        table.add_row(_name(found, sizes), *cells)
    verdict = "holds" if found.holds else "does NOT hold: read the table below as a guess"
    table.caption = (
        f"Fitted to {fitted}. The model {verdict} (memory within {MEMORY:.0%}, bytes within {BYTES:.0%}). "
        "Bytes of one device."
    )
    return table


def _rows(found: Plan) -> Table:
    table = Table(title=f"On {found.chip.name}, as the model says", title_justify="left")
    table.add_column("chips", justify="right")
    table.add_column("mesh")
    for heading in ("memory a device", "HBM, ms", "links, ms"):
        table.add_column(heading, justify="right")
    table.add_column("bound by")
    before = None
    for row in found.rows:
        if before not in (None, row.chips):
            table.add_section()
        links = "-" if row.link_seconds is None else f"{row.link_seconds * 1e3:.3f}"
        memory = size_text(int(row.figures.peak_bytes))
        table.add_row(
            "" if before == row.chips else str(row.chips), _name(found, row.sizes), memory,
            f"{row.hbm_seconds * 1e3:.3f}", links, row.bound,
        )  # fmt: skip
        before = row.chips
    table.caption = (
        f"A device has {size_text(found.chip.hbm_bytes)}. Times are lower bounds: bytes over HBM bandwidth, and bytes "
        "sent over the published bandwidth of all links of a chip. Products are not counted. Nothing was measured on "
        "a TPU."
    )
    return table
