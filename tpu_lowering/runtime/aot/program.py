"""``TpuProgram``: a program compiled for a TPU, what the compiler says of it, and its file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.mesh import ONE_DEVICE, Mesh
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.releases import version
from tpu_lowering.runtime.aot import archive, hlo, loops, refusals, trace
from tpu_lowering.runtime.aot.collectives import Collective, collectives_of, link_seconds
from tpu_lowering.runtime.aot.compiler import Compiled
from tpu_lowering.runtime.aot.entry_operation import EntryOperation
from tpu_lowering.runtime.aot.schedule import ScheduleDump
from tpu_lowering.runtime.aot.traffic import traffic_by_operands

LEFT_OUT = frozenset(("hlo", "artifact", "executable"))
"""What is not among a file's facts, but a member of its own."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TpuProgram:
    """A program compiled by libtpu for a chip that is not there. Nothing in it was measured on a TPU.

    Attributes:
        name: the program's name.
        chip: what it was compiled for.
        hlo: optimised, scheduled HLO text.
        mesh: the devices that run it together, and the axes that the user has named. All bytes are those of one device;
            on tpu7x and v4 a device is one of a chip's two cores.
        places: where the device of each place of the mesh stands on the torus: (x, y, z, core).
        collectives: what the devices send each other, in the order of the schedule.
        entry_operations: the operations that move bytes, in the order of the schedule.
        argument_bytes, output_bytes, temporary_bytes, aliased_bytes, peak_bytes: the compiler's memory plan.
            Peak counts buffers that are prefetched into VMEM too on v5e and v6e.
        artifact: portable StableHLO, as ``jax.export`` serialises it.
        executable: libtpu's executable; b"" where it cannot be serialised. Loading it needs a TPU.
        schedule_failure: why there is no static schedule, or not all of it, in a sentence; "" where there is one.
        drawn_inputs: what the program's last arguments are, if it draws random numbers; whoever runs it draws them
            anew for every call. "key" is a uint32 [2] of random bits, of which all random numbers are made; with
            ``options={"random": "torch"}`` each operator's values are an argument, under the operator's name.
        fusion: what generated kernels came to, or why there are none; "" where nothing was fused.
        fused: results of operators that become a kernel, in the form with generated kernels; ``fusion`` says whether
            that form was taken. These and the next two are as in a ``Report``.
        unfused: those that could have, and why they did not.
        launched: Helion kernels that are launched otherwise than their config says.
    """

    name: str
    chip: Chip
    hlo: str
    entry_operations: tuple[EntryOperation, ...]
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    aliased_bytes: int
    peak_bytes: int
    artifact: bytes
    executable: bytes
    schedule_failure: str
    drawn_inputs: tuple[str, ...] = ()
    fusion: str = ""
    mesh: Mesh = ONE_DEVICE
    places: tuple[tuple[int, ...], ...] = ()
    collectives: tuple[Collective, ...] = ()
    fused: tuple[Remark, ...] = ()
    unfused: tuple[Remark, ...] = ()
    launched: tuple[Remark, ...] = ()

    @property
    def unknown_loops(self) -> tuple[str, ...]:
        """Loops whose bytes and cycles are counted once, because the program does not say how often they run."""
        return tuple(operation.name for operation in self.entry_operations if operation.times is None)

    @property
    def hbm_bytes_read(self) -> int:
        """HBM bytes read by all operations: kernels by the compiler's DMA schedule, others by their operands."""
        return sum(operation.hbm_bytes_read for operation in self.entry_operations)

    @property
    def hbm_bytes_written(self) -> int:
        """HBM bytes written by all operations; see ``hbm_bytes_read``."""
        return sum(operation.hbm_bytes_written for operation in self.entry_operations)

    @property
    def hbm_bytes(self) -> int:
        return self.hbm_bytes_read + self.hbm_bytes_written

    @property
    def vmem_bytes(self) -> dict[str, int]:
        """Scoped VMEM of each Mosaic kernel, by operation name."""
        return {o.name: o.vmem_bytes for o in self.entry_operations if o.opcode == "custom-call:tpu_custom_call"}

    @property
    def schedule_cycles(self) -> int | None:
        """Cycles of the compiler's simulated static schedule, all operations one after the other; None if a
        schedule is missing. The simulation knows no contention for HBM."""
        cycles = [operation.schedule_cycles for operation in self.entry_operations]
        return None if None in cycles else sum(c for c in cycles if c is not None)

    @property
    def bandwidth_bound_seconds(self) -> float:
        """``hbm_bytes`` over the chip's HBM bandwidth: no run of this program can take less."""
        return self.hbm_bytes / self.chip.device_bytes_per_second

    @property
    def sent_bytes(self) -> int:
        """Bytes that a device sends in all collectives, as rings would; see ``Collective.sent_bytes``."""
        return sum(one.total_sent_bytes for one in self.collectives)

    @property
    def link_bound_seconds(self) -> float | None:
        """``sent_bytes`` over the published bandwidth of the links; see ``collectives.link_seconds``."""
        return link_seconds(self.collectives, self.chip)

    @staticmethod
    def of(
        name: str,
        chip: Chip,
        compiled: Compiled,
        artifact: bytes,
        drawn_inputs: tuple[str, ...] = (),
        mesh: Mesh | None = None,
    ) -> TpuProgram:
        """Reads a program off what the compiler said; ``mesh`` is that of all devices that run it."""
        facts = compiled.facts
        places = tuple(tuple(place) for place in facts.get("places", ()))
        planned = facts["argument_bytes"] + facts["output_bytes"] + facts["temp_bytes"] - facts["alias_bytes"]
        operations = _entry_operations(compiled)
        return TpuProgram(
            name=name,
            chip=chip,
            hlo=compiled.hlo,
            entry_operations=operations,
            argument_bytes=facts["argument_bytes"],
            output_bytes=facts["output_bytes"],
            temporary_bytes=facts["temp_bytes"],
            aliased_bytes=facts["alias_bytes"],
            peak_bytes=facts["peak_bytes"] or planned,
            artifact=artifact,
            executable=compiled.executable,
            schedule_failure=compiled.schedule_failure or _without_cycles(operations),
            drawn_inputs=drawn_inputs,
            mesh=mesh or ONE_DEVICE,
            places=places,
            collectives=() if mesh is None else collectives_of(hlo.Module.of(compiled.hlo), mesh, places),
        )

    def __repr__(self) -> str:
        """A line: what stands in the fields takes hundreds of kilobytes."""
        cycles = "" if self.schedule_cycles is None else f", {self.schedule_cycles:,} cycles simulated"
        return (
            f"<TpuProgram {self.name} for {self.chip.name}: {len(self.entry_operations)} operations, "
            f"{self.hbm_bytes:,} HBM bytes, {self.peak_bytes:,} at peak{cycles}>"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses with TL104: what is compiled ahead of time is read and compared, never run."""
        raise refusals.never_run(type(self).__name__, self.chip)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the static schedule as a timeline for Perfetto, in Chrome's trace event format.

        There is a track for XLA's operations, one for asynchronous copies and one for each kernel; what the compiler
        gives no cycles for has tracks of its own. Times are microseconds of simulated cycles over the chip's clock, and
        nothing was measured; see ``trace``.

        Raises:
            TpuLoweringError: TL112 if there cannot be such a file.
        """
        trace.write(path, [self])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file: StableHLO, executable, HLO text and facts, each under a digest.

        Raises:
            TpuLoweringError: TL112 if there cannot be such a file.
        """
        archive.write(path, self.members(), versions())

    def members(self) -> dict[str, bytes]:
        """What a file has of it."""
        return {
            archive.ARTIFACT: self.artifact,
            archive.EXECUTABLE: self.executable,
            archive.HLO: self.hlo.encode(),
            archive.FACTS: json.dumps(self._facts()).encode(),
        }

    def _facts(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in LEFT_OUT}
        values["chip"] = dataclasses.asdict(self.chip)
        values["mesh"] = dataclasses.asdict(self.mesh)
        for name in ("collectives", "entry_operations", "fused", "unfused", "launched"):
            values[name] = [dataclasses.asdict(one) for one in getattr(self, name)]
        return values


def _without_cycles(operations: Sequence[EntryOperation]) -> str:
    """Why cycles have no sum though the schedule was simulated, as a sentence; "" where they have one."""
    missing = [operation.name for operation in operations if operation.schedule_cycles is None]
    if not missing:
        return ""
    return f"the compiler states no cycles for {len(missing)} of {len(operations)} operations, such as {missing[0]}"


def _entry_operations(compiled: Compiled) -> tuple[EntryOperation, ...]:
    module = hlo.Module.of(compiled.hlo)
    by_name = {operation.name: operation for operation in module.entry}
    moved, dma = traffic_by_operands(module, compiled.schedule.dma), compiled.schedule.dma
    found: list[EntryOperation] = []
    for operation in module.entry:
        if operation.name not in moved:
            continue
        traffic = moved[operation.name]
        source = "dma schedule" if operation.is_kernel and dma.get(operation.name) == traffic else "operands"
        times: int | None = 1
        if operation.opcode == "while" and loops.body_of(operation, module):
            counts = [loops.trips(operation, by_name, module)]
            counts += [loops.trips(loop, inside, module) for loop, inside in loops.inner_loops(operation, module)]
            source, times = "body", None if None in counts else counts[0]
        found.append(
            EntryOperation(
                operation.name,
                operation.opcode,
                operation.op_name,
                traffic.read,
                traffic.written,
                source,
                operation.vmem_bytes,
                _cycles(operation, by_name, module, compiled.schedule),
                times,
            )
        )
    return tuple(found)


def _cycles(
    operation: hlo.Operation, operations: Mapping[str, hlo.Operation], module: hlo.Module, dumped: ScheduleDump
) -> int | None:
    """Cycles of an operation; of a loop those of its body, as often as it runs."""
    body = loops.body_of(operation, module) if operation.opcode == "while" else ()
    if not body:
        return dumped.cycles.get(operation.name, operation.estimated_cycles)
    inside = {one.name: one for one in body}
    once = [_cycles(one, inside, module, dumped) for one in body if one.moves_bytes]
    count = loops.trips(operation, operations, module)
    return None if None in once else (1 if count is None else count) * sum(one for one in once if one is not None)


def versions() -> dict[str, str]:
    """Versions that a saved program depends on."""
    return {package: version(package) or "" for package in ("jax", "jaxlib", "libtpu")}


def load(path: str | os.PathLike[str]) -> TpuProgram:
    """Reads a saved program. Nothing in the file is unpickled or executed.

    Raises:
        TpuLoweringError: TL109 for a file that is damaged, not ours, or of other versions.
    """
    return from_members(path, archive.read(path, versions(), archive.PROGRAM))


def from_members(path: str | os.PathLike[str], members: Mapping[str, bytes]) -> TpuProgram:
    """The program that a file has the members of.

    Raises:
        TpuLoweringError: TL109.
    """
    hints = get_type_hints(TpuProgram)
    try:
        facts = archive.parsed(members[archive.FACTS])
        if not isinstance(facts, dict) or set(facts) != set(hints) - LEFT_OUT:
            raise ValueError("other fields")
        return TpuProgram(
            **{name: archive.typed(hints[name], value) for name, value in facts.items()},
            hlo=members[archive.HLO].decode(),
            artifact=members[archive.ARTIFACT],
            executable=members[archive.EXECUTABLE],
        )
    except (ValueError, RecursionError) as error:
        raise archive.damaged(path, f"the facts of a program, got {type(error).__name__}: {error}") from error
