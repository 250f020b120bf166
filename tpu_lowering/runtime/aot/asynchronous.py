"""Collectives of a compiled program: where each begins and ends in the schedule, once for each time it runs.

The compiler writes one collective in several ways::

    all-reduce(x)                                                    # all of it
    all-gather-start(x), ..., all-gather-done(start)                 # while what stands between is computed
    fusion(x), calls=c                  c: all-reduce, dynamic-slice # reduces, and each device keeps its part
    async-start(), calls=c, async-update(start, x), ..., async-done(update)          # on the SparseCore
    fusion(x), calls=c                  c: all-gather, AsyncCollectiveStart
    fusion(parts of it, y), calls=d     d: the same all-gather, and a product        # carried on, beside work
    fusion(parts of it), calls=e        e: the same all-gather, AsyncCollectiveDone

The last five lines are one all-gather.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tpu_lowering.runtime.aot.hlo import Module, Operation

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
STARTS, DONE = "custom-call:AsyncCollectiveStart", "custom-call:AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True)
class Placed:
    """A collective in the schedule of a computation.

    Attributes:
        issued: the operation that begins it.
        inner: the collective itself: the same, or one of a computation that it runs.
        body: the computation of ``inner``, by name, where that is another.
        carried: further operations of the computation that are parts of it.
        between: operations that the schedule has between its beginning and its end.
    """

    issued: Operation
    inner: Operation
    body: Mapping[str, Operation]
    carried: tuple[str, ...] = ()
    between: tuple[Operation, ...] = ()

    @property
    def kind(self) -> str:
        """One of ``KINDS``; a sum of which each device keeps its part is a reduce-scatter."""
        kind = self.inner.opcode.removesuffix("-start")
        return "reduce-scatter" if kind == "all-reduce" and self._keeps_part() else kind

    @property
    def is_asynchronous(self) -> bool:
        return bool(self.carried)

    def _keeps_part(self) -> bool:
        """Whether what a fusion gives is a part of the sum."""
        root = list(self.body.values())[-1] if self.body else None
        if root is None or root.opcode != "dynamic-slice":
            return False
        source = self.body.get(root.operands[0])
        while source is not None and source.opcode in ("bitcast", "copy", "reshape"):
            source = self.body.get(source.operands[0])
        return source is self.inner


def placed(module: Module, operations: Sequence[Operation]) -> list[Placed]:
    """The collectives that a computation issues; those of its loops and branches are not among them."""
    bodies = {one.name: _body(module, one) for one in operations if one.opcode in ("fusion", "async-start")}
    found: list[Placed] = []
    parts: set[str] = set()
    for at, operation in enumerate(operations):
        body = bodies.get(operation.name, {})
        if operation.name in parts:
            continue
        for inner in body.values() if body else (operation,):
            if inner.opcode.removesuffix("-start") not in KINDS:
                continue
            one = Placed(operation, inner, body)
            if operation.opcode.endswith("-start") or any(other.opcode == STARTS for other in body.values()):
                one = _with_end(one, operations[at + 1 :], bodies)
                parts.update(one.carried)
            found.append(one)
    return found


def _body(module: Module, operation: Operation) -> dict[str, Operation]:
    """What a fusion runs, by name, the root last; or an asynchronous start, and what that calls."""
    names = (operation.calls,) if operation.opcode == "fusion" else module.called(operation.calls)
    return {inner.name: inner for name in names for inner in module.computations.get(name, ())}


def _with_end(start: Placed, later: Sequence[Operation], bodies: Mapping[str, Mapping[str, Operation]]) -> Placed:
    """A collective with what carries it on, and what the schedule has until it is done."""
    reached, carried, between = {start.issued.name}, list[str](), list[Operation]()
    for operation in later:
        body = bodies.get(operation.name, {})
        taken = any(name in reached for name in operation.operands)
        if taken and (operation.opcode.endswith("-done") or any(other.opcode == DONE for other in body.values())):
            return dataclasses.replace(start, carried=(*carried, operation.name), between=tuple(between))
        if taken and operation.opcode in ("get-tuple-element", "async-update"):
            reached.add(operation.name)
            carried.append(operation.name)
            if operation.opcode == "async-update" and not start.issued.operands:
                between.clear()  # the update brings the operands: nothing is sent before
            continue
        if taken and any(inner.opcode == start.inner.opcode for inner in body.values()):
            reached.add(operation.name)
            carried.append(operation.name)
        between.append(operation)
    return dataclasses.replace(start, carried=tuple(carried), between=tuple(between))
