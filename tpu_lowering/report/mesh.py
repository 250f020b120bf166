"""What the report says of a mesh: its axes, and what its devices send each other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tpu_lowering.report.sizes import size_text
from tpu_lowering.runtime.aot.program import TpuProgram


@dataclasses.dataclass(frozen=True)
class Sent:
    """Collectives of one kind, along the same axes, from the same source line. Bytes are those of one device, in all.

    Attributes:
        kind: HLO's name, such as "all-reduce".
        axes: of the mesh; "part of the mesh" for groups that are no product of axes.
        where: the user's source line, ``file.py:line``; "" where the compiler has lost it.
        count: how many there are.
        runs: how often they run, with loops; None where a loop's count is not known.
        operand_bytes: what a device gives to them.
        sent_bytes: what it sends; see ``Collective.sent_bytes``.
        dimensions: of the torus, that they extend along.
        overlapped: how many of them the schedule has beside other work.
    """

    kind: str
    axes: str
    where: str
    count: int
    runs: int | None
    operand_bytes: int
    sent_bytes: int
    dimensions: str
    overlapped: int


@dataclasses.dataclass(frozen=True)
class MeshView:
    """A program of several devices, or a forward and a backward, as libtpu compiles them. Not measured on a TPU.

    Attributes:
        axes: names and sizes, such as "data 4 x model 4".
        topology: on which chips.
        collectives: what a device sends, by kind, axes and source line.
        sent_bytes: in all.
        hbm_bound_seconds: HBM bytes of a device over its HBM bandwidth.
        link_bound_seconds: ``sent_bytes`` over the links' published bandwidth; None where none is published.
    """

    axes: str
    topology: str
    collectives: tuple[Sent, ...]
    sent_bytes: int
    hbm_bound_seconds: float
    link_bound_seconds: float | None

    @staticmethod
    def of(programs: Sequence[TpuProgram]) -> MeshView:
        """What there is to say of programs of the same devices, which run one after the other."""
        rows: dict[tuple[str, str, str, str], Sent] = {}
        for one in (one for program in programs for one in program.collectives):
            where = re.findall(r"[\w.\-]+\.py:\d+", one.op_name)
            axes = ", ".join(one.axes) or "part of the mesh"
            key = (one.kind, axes, where[-1] if where else "", " ".join(one.dimensions))
            row = rows.get(key) or Sent(*key[:3], 0, 0, 0, 0, key[3], 0)
            times = 1 if one.times is None else one.times
            rows[key] = dataclasses.replace(
                row,
                count=row.count + 1,
                runs=None if None in (row.runs, one.times) else (row.runs or 0) + times,
                operand_bytes=row.operand_bytes + times * one.operand_bytes,
                sent_bytes=row.sent_bytes + one.total_sent_bytes,
                overlapped=row.overlapped + bool(one.overlapped),
            )
        links = [program.link_bound_seconds for program in programs]
        return MeshView(
            axes=str(programs[0].mesh),
            topology=programs[0].chip.topology,
            collectives=tuple(rows.values()),
            sent_bytes=sum(program.sent_bytes for program in programs),
            hbm_bound_seconds=sum(program.bandwidth_bound_seconds for program in programs),
            link_bound_seconds=None if None in links else sum(bound for bound in links if bound is not None),
        )

    def print(self, console: Console) -> None:
        """Prints it as a table."""
        table = Table(title=f"Mesh: {self.axes} on {self.topology}, bytes of one device", title_justify="left")
        for name in ("collective", "axes", "where"):
            table.add_column(name, overflow="fold")
        for name in ("runs", "given", "sent", "torus", "beside work"):
            table.add_column(name, justify="right")
        for one in self.collectives:
            runs = "unknown" if one.runs is None else str(one.runs)
            beside = f"{one.overlapped} of {one.count}"
            sizes = size_text(one.operand_bytes), size_text(one.sent_bytes)
            table.add_row(one.kind, one.axes, one.where or "-", runs, *sizes, one.dimensions, beside)
        links = "not known: no bandwidth of its links is published"
        if self.link_bound_seconds is not None:
            links = f"{self.link_bound_seconds * 1e6:,.1f} us, bytes sent over published link bandwidth"
        table.caption = (
            f"At least {self.hbm_bound_seconds * 1e6:,.1f} us for HBM bytes. Links alone at least {links}. "
            "Nothing was measured on a TPU."
        )
        console.print(table)
