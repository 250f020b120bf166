"""HBM bytes of a compiled program's operations, by their operands and results."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence

from tpu_lowering.runtime.aot import loops
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

    def times(self, count: int) -> Traffic:
        """The same, so often."""
        return Traffic(count * self.read, count * self.written)


NOTHING: Mapping[str, Traffic] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Update:
    """An update in place: of a large buffer, only a slice or some rows are written.

    Attributes:
        position: operand position of the buffer; neither it nor the rest of the result is touched.
        nbytes: bytes of the slice or the rows.
        read: bytes of the buffer that are read, to be added to.
    """

    position: int
    nbytes: int
    read: int = 0


def update_in_place(operation: Operation, operations: Mapping[str, Operation], module: Module) -> Update | None:
    """The update that an operation makes: a ``dynamic-update-slice`` or a ``scatter``, or a fusion whose result is one.

    XLA writes either over its operand, and copies that first where somebody else needs it.
    """
    if operation.opcode in UPDATES:
        return _update(operation, operations, module, 0)
    if operation.opcode != "fusion":
        return None
    body = module.computations.get(operation.calls, ())
    by_name = {inner.name: inner for inner in body}
    root = _behind(body[-1], by_name) if body else None
    if root is None or root.opcode not in UPDATES:
        return None
    buffer = by_name.get(root.operands[0])
    if root.opcode == "scatter" and buffer is not None:
        while buffer.parameter is None and buffer.opcode in SAME and buffer.operands[0] in by_name:
            buffer = by_name[buffer.operands[0]]
        if sum(buffer.name in inner.operands for inner in body) > 1:
            return None
    if buffer is None or buffer.parameter is None:
        return None
    return _update(root, by_name, module, buffer.parameter)


UPDATES, SAME = ("dynamic-update-slice", "scatter"), ("bitcast", "reshape", "transpose", "copy")
"""Operations that update their first operand, and those that give what they take."""


def _behind(operation: Operation, operations: Mapping[str, Operation]) -> Operation:
    """What a value is a bitcast of."""
    while operation.opcode == "bitcast" and operation.operands[0] in operations:
        operation = operations[operation.operands[0]]
    return operation


def _update(root: Operation, operations: Mapping[str, Operation], module: Module, position: int) -> Update | None:
    is_scatter = root.opcode == "scatter"
    if is_scatter and len(root.operands) != 3:
        return None
    new = operations.get(root.operands[2 if is_scatter else 1])
    if new is None:
        return None
    nbytes = sum(array.nbytes for array in new.results)
    combiner = [one for name in root.called for one in module.computations.get(name, ())]
    overwrites = bool(combiner) and combiner[-1].parameter == 1
    return Update(position, nbytes, nbytes if is_scatter and not overwrites else 0)


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


def parts_of_collectives(module: Module, operations: Sequence[Operation]) -> dict[str, Placed]:
    """The fusions of a computation that begin a collective, carry it on or end it, by name."""
    found: dict[str, Placed] = {}
    for one in placed(module, operations):
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


def traffic_by_operands(module: Module, scheduled: Mapping[str, Traffic] = NOTHING) -> dict[str, Traffic]:
    """HBM traffic of every entry operation that moves bytes.

    An operand and a result that share a buffer count once, as written; of an update in place only the slice or the rows
    count, of an operand that is only sliced or gathered from the slices, and of a prefetch into VMEM nothing is
    written. A loop counts its body as often as it runs it, or once where nothing says how often. Exact for XLA's own
    operations that use all of their other operands; a lower bound for kernels that fetch a block more than once.

    Args:
        module: the program.
        scheduled: what kernels move by their DMA schedules, by name; taken where it is no less.
    """
    return _traffic_of(module.entry, module, scheduled)


def _traffic_of(
    operations: Sequence[Operation], module: Module, scheduled: Mapping[str, Traffic]
) -> dict[str, Traffic]:
    """The same of the operations of any computation."""
    by_name = {operation.name: operation for operation in operations}
    parts = parts_of_collectives(module, operations)
    traffic: dict[str, Traffic] = {}
    for operation in operations:
        if not operation.moves_bytes:
            continue
        if operation.name in parts:
            found = _of_part(operation, parts[operation.name], by_name)
        elif operation.opcode == "async-update":
            found = offloaded_traffic(operation, by_name, module)
        elif operation.opcode == "while" and (body := loops.body_of(operation, module)):
            once = _traffic_of(body, module, scheduled).values()
            count = loops.trips(operation, by_name, module)
            found = Traffic(sum(one.read for one in once), sum(one.written for one in once))
            found = found.times(1 if count is None else count)
        else:
            found = _of_operands(operation, by_name, module)
        known = scheduled.get(operation.name)
        # A schedule that copies less than the operands hold was not dumped whole.
        whole = operation.is_kernel and known is not None and known.total >= found.total
        traffic[operation.name] = known if whole and known is not None else found
    return traffic


def _of_operands(operation: Operation, operations: Mapping[str, Operation], module: Module) -> Traffic:
    update = update_in_place(operation, operations, module)
    untouched = (*operation.aliased, *([] if update is None else [update.position]))
    sliced = slices_read(operation, module)
    read = 0
    for position, name in enumerate(operation.operands):
        if position not in untouched and name in operations:
            whole = sum(array.hbm_bytes for array in operations[name].results)
            read += min(whole, sliced.get(position, whole))
    written = sum(array.hbm_bytes for array in operation.written)
    if update is not None and written:
        return Traffic(read + update.read, update.nbytes)
    return Traffic(read, written)
