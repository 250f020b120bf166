"""HBM bytes of a compiled program's operations, by their operands and results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tpu_lowering.runtime.aot.asynchronous import Placed, placed
from tpu_lowering.runtime.aot.hlo import KERNEL, SLICES, Array, Module, Operation


@dataclasses.dataclass(frozen=True)
class Traffic:
    """HBM bytes of one operation: by its buffers, operands read once and results written once, or as its schedule
    copies them."""

    read: int
    written: int

    @property
    def total(self) -> int:
        return self.read + self.written


@dataclasses.dataclass(frozen=True)
class Update:
    """An update in place: of a large buffer, only a slice is written.

    Attributes:
        position: operand position of the buffer; neither it nor the rest of the result is touched.
        nbytes: bytes of the slice.
    """

    position: int
    nbytes: int


def update_in_place(operation: Operation, operations: Mapping[str, Operation], module: Module) -> Update | None:
    """The update that an operation makes: a ``dynamic-update-slice``, or a fusion whose result is one."""
    if operation.opcode == "dynamic-update-slice":
        update = operations.get(operation.operands[1])
        return Update(0, sum(array.nbytes for array in update.results)) if update else None
    if operation.opcode != "fusion":
        return None
    body = module.computations.get(operation.calls, ())
    by_name = {inner.name: inner for inner in body}
    root = body[-1] if body else None
    if root is None or root.opcode != "dynamic-update-slice":
        return None
    buffer, update = by_name.get(root.operands[0]), by_name.get(root.operands[1])
    if buffer is None or update is None or buffer.parameter is None:
        return None
    return Update(buffer.parameter, sum(array.nbytes for array in update.results))


def slices_read(operation: Operation, module: Module) -> dict[int, int]:
    """Bytes that an operation reads of operands which it takes nothing but slices of, by operand position."""
    if operation.opcode in SLICES:
        return {0: sum(array.nbytes for array in operation.written)}
    body = module.computations.get(operation.calls, ()) if operation.opcode in ("fusion", KERNEL) else ()
    found: dict[int, int] = {}
    for parameter in body:
        users = [inner for inner in body if parameter.name in inner.operands]
        if parameter.parameter is None or not users:
            continue
        if all(user.opcode in SLICES and user.operands.index(parameter.name) == 0 for user in users):
            found[parameter.parameter] = sum(array.nbytes for user in users for array in user.results)
    return found


def offloaded_traffic(update: Operation, operations: Mapping[str, Operation], module: Module) -> Traffic:
    """HBM traffic of work that runs on the SparseCore, by the ``async-update`` that hands over its operands.

    What it makes are the results of the ``async-done`` that waits for it. Of the table of an offloaded gather only
    the rows that are taken count.
    """
    _, *given = update.operands
    taken: dict[Array, int] = {}
    for name in module.called(operations[update.operands[0]].calls):
        body = {inner.name: inner for inner in module.computations[name]}
        for inner in body.values():
            if inner.opcode == "gather" and inner.operands[0] in body:
                (table,) = body[inner.operands[0]].results
                taken[table] = sum(array.nbytes for array in inner.results)
    arrays_read = [array for name in given if name in operations for array in operations[name].results]
    read = sum(min(array.hbm_bytes, taken.get(array, array.hbm_bytes)) for array in arrays_read)
    done = [other for other in operations.values() if other.opcode == "async-done" and update.name in other.operands]
    return Traffic(read, sum(array.hbm_bytes for other in done for array in other.results))


def parts_of_collectives(module: Module) -> dict[str, Placed]:
    """The fusions of the entry computation that begin a collective, carry it on or end it, by name."""
    found: dict[str, Placed] = {}
    for one in placed(module, module.entry):
        if one.issued.opcode == "fusion" and one.is_asynchronous:
            found |= dict.fromkeys((one.issued.name, *one.carried), one)
    return found


def _of_part(operation: Operation, whole: Placed, operations: Mapping[str, Operation]) -> Traffic:
    """The traffic of one part of a collective: all of the collective's at its beginning, and after that of the work
    beside it alone."""
    if operation is whole.issued:
        read = sum(array.hbm_bytes for name in operation.operands for array in operations[name].results)
        return Traffic(read, sum(array.hbm_bytes for array in whole.inner.results))
    handed_on = set(operation.aliased)
    given = [name for at, name in enumerate(operation.operands) if at not in handed_on and name in operations]
    new = [array for at, array in enumerate(operation.results) if at not in operation.aliasing]
    read = sum(array.hbm_bytes for name in given for array in operations[name].results)
    return Traffic(read, sum(array.hbm_bytes for array in new))


def traffic_by_operands(module: Module) -> dict[str, Traffic]:
    """HBM traffic of every entry operation that moves bytes.

    An operand and a result that share a buffer count once, as written; of an update in place only the slice
    counts, of an operand that is only sliced or gathered from the slices, and of a prefetch into VMEM nothing is
    written. Exact for XLA's own operations that use all of their other operands; a lower bound for kernels that fetch
    a block more than once.
    """
    by_name = {operation.name: operation for operation in module.entry}
    parts = parts_of_collectives(module)
    traffic: dict[str, Traffic] = {}
    for operation in module.entry:
        if not operation.moves_bytes:
            continue
        update = update_in_place(operation, by_name, module)
        untouched = (*operation.aliased, *([] if update is None else [update.position]))
        if operation.name in parts:
            traffic[operation.name] = _of_part(operation, parts[operation.name], by_name)
            continue
        if operation.opcode == "async-update":
            traffic[operation.name] = offloaded_traffic(operation, by_name, module)
            continue
        sliced = slices_read(operation, module)
        read = 0
        for position, name in enumerate(operation.operands):
            if position not in untouched and name in by_name:
                whole = sum(array.hbm_bytes for array in by_name[name].results)
                read += min(whole, sliced.get(position, whole))
        written = sum(array.hbm_bytes for array in operation.written)
        if update is not None and written:
            written = update.nbytes
        traffic[operation.name] = Traffic(read, written)
    return traffic
