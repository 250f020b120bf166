"""How much HBM a compiled program has taken at each of its operations, by the sizes of what is still needed."""

from __future__ import annotations

from collections.abc import Mapping

from tpu_lowering.runtime.aot import hlo
from tpu_lowering.runtime.aot.traffic import update_in_place

FORWARDS = frozenset(("tuple", "get-tuple-element", "bitcast", "opt-barrier", "add-dependency", "after-all"))
"""They give their operands' buffers on."""


def live_bytes(module: hlo.Module) -> tuple[tuple[str, int], ...]:
    """The bytes in HBM while each operation runs that moves bytes, by its name, in the order of the schedule.

    Arguments are there from the beginning to the end. What an operation writes in place takes nothing. The compiler's
    plan may need more, where holes are between buffers; its own peak is ``TpuProgram.peak_bytes``.
    """
    by_name = {operation.name: operation for operation in module.entry}
    buffers, sizes = _buffers(module, by_name)
    first = {name: at for at, name in enumerate(by_name)}
    last = dict(first)
    for at, operation in enumerate(module.entry):
        for operand in operation.operands:
            for buffer in buffers.get(operand, ()):
                last[buffer] = at
    end = len(module.entry)
    for operation in module.entry:
        if operation.opcode == "parameter":
            first[operation.name], last[operation.name] = 0, end
    for buffer in buffers.get(module.entry[-1].name, ()) if module.entry else ():
        last[buffer] = end
    change = [0] * (end + 2)
    for buffer, nbytes in sizes.items():
        change[first[buffer]] += nbytes
        change[last[buffer] + 1] -= nbytes
    found: list[tuple[str, int]] = []
    now = 0
    for at, operation in enumerate(module.entry):
        now += change[at]
        if operation.moves_bytes:
            found.append((operation.name, now))
    return tuple(found)


def _buffers(
    module: hlo.Module, by_name: Mapping[str, hlo.Operation]
) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """For each operation those whose buffers its result is in, and the bytes of each operation's own."""
    buffers: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, int] = {}
    for operation in module.entry:
        given = [buffers.get(operand, ()) for operand in operation.operands]
        through = tuple(dict.fromkeys(buffer for one in given for buffer in one))
        if operation.opcode in FORWARDS or operation.opcode.endswith("-done"):
            buffers[operation.name] = through
            continue
        update = update_in_place(operation, by_name, module)
        inside = (*operation.aliased, *([] if update is None else [update.position]))
        shared = tuple(buffer for at in inside if at < len(given) for buffer in given[at])
        taken = sum(sizes.get(buffer, 0) for buffer in shared)
        sizes[operation.name] = max(0, sum(array.hbm_bytes for array in operation.written) - taken)
        buffers[operation.name] = (operation.name, *shared)
    return buffers, sizes
