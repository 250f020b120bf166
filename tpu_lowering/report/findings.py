"""What a report holds beside remarks: draws of random numbers, and the TPU compiler's view."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tpu_lowering.report.mesh import MeshView
from tpu_lowering.report.moved import Moved, moved_by
from tpu_lowering.runtime.aot import hlo, trace
from tpu_lowering.runtime.aot.live import live_bytes
from tpu_lowering.runtime.aot.program import TpuProgram


@dataclasses.dataclass(frozen=True)
class Draw:
    """One place where a model draws random numbers.

    Attributes:
        node: its name in the graph.
        program: the program it belongs to.
        where: the user's source line, ``file.py:line in function: code``.
        operator: what is drawn, such as ``aten.bernoulli.p``.
        source: "key", drawn in the program from the key of the call, or "torch", drawn by eager torch before it runs.
    """

    node: str
    program: str
    where: str
    operator: str
    source: str


@dataclasses.dataclass(frozen=True)
class Direction:
    """What the TPU compiler says of a forward or a backward. Not measured on a TPU.

    Attributes:
        name: "forward" or "backward".
        programs: (as written, compiled): as torch_tpu's split rule cuts the graph, each part compiled alone;
            and the one program. The same for the other pairs.
        hbm_bytes: HBM bytes moved, added up over the programs.
        peak_bytes: the largest peak of a program.
        device_operations: operations that move bytes.
        operations: what they are.
        memory: HBM bytes that are taken while each operation of the compiled program runs, in its order.
    """

    name: str
    programs: tuple[int, int]
    hbm_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]
    device_operations: tuple[int, int]
    operations: tuple[tuple[Moved, ...], tuple[Moved, ...]] = ((), ())
    memory: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(name: str, before: Sequence[TpuProgram], after: TpuProgram) -> Direction:
        """The programs as written, and the compiled one."""
        return Direction(
            name=name,
            programs=(len(before), 1),
            hbm_bytes=(sum(part.hbm_bytes for part in before), after.hbm_bytes),
            peak_bytes=(max((part.peak_bytes for part in before), default=0), after.peak_bytes),
            device_operations=(sum(len(part.entry_operations) for part in before), len(after.entry_operations)),
            operations=(tuple(one for part in before for one in moved_by(part)), moved_by(after)),
            memory=live_bytes(hlo.Module.of(after.hlo)),
        )


@dataclasses.dataclass(frozen=True)
class CompilerView:
    """What the TPU compiler says of the model, as written and compiled. Not measured on a TPU.

    Attributes:
        target: the chip.
        programs: (as written, compiled), of both directions together; see ``Direction``. The same for the other pairs.
        hbm_bytes: HBM bytes moved, added up over the programs.
        peak_bytes: the largest peak of a program.
        device_operations: operations that move bytes.
        fusion: what generated kernels came to against XLA alone; "" where there are none.
        mesh: what the devices of a slice send each other; None for a program of one device. Bytes above are those of
            one device.
        directions: the forward and, where a result requires a gradient, the backward.
        saved_bytes: HBM bytes of what the one saves for the other in memory of its own; None without backward.
        compiled: the programs, as compiled, the forward first. ``Report.to_dict`` leaves them out.
    """

    target: str
    programs: tuple[int, int]
    hbm_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]
    device_operations: tuple[int, int]
    fusion: str = ""
    mesh: MeshView | None = None
    directions: tuple[Direction, ...] = dataclasses.field(default=(), repr=False)
    saved_bytes: int | None = None
    compiled: tuple[TpuProgram, ...] = dataclasses.field(default=(), repr=False)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the static schedules as a timeline, the backward after the forward; see ``TpuProgram.trace``.

        Raises:
            TpuLoweringError: TL112 if there cannot be such a file.
        """
        trace.write(path, self.compiled)

    @staticmethod
    def of(target: str, directions: Sequence[Direction], **others: Any) -> CompilerView:
        """The view of these directions together."""
        sums = {
            name: tuple(joined(getattr(direction, name)[side] for direction in directions) for side in (0, 1))
            for name, joined in (("programs", sum), ("hbm_bytes", sum), ("peak_bytes", max), ("device_operations", sum))
        }
        given: dict[str, Any] = {**sums, **others}
        return CompilerView(target, directions=tuple(directions), **given)
