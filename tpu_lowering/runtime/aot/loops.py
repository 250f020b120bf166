"""How often a loop of a compiled program runs, where its counter says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpu_lowering.runtime.aot.hlo import Module, Operation

COPIES = ("copy", "bitcast", "copy-start", "copy-done")


def trips(loop: Operation, operations: Mapping[str, Operation], module: Module) -> int | None:
    """How often a ``while`` runs its body: None unless it counts from a constant to a constant.

    Args:
        loop: the ``while``.
        operations: those of its computation, by name.
        module: the program.
    """
    condition, body = (module.computations.get(named(loop, part), ()) for part in ("condition", "body"))
    if not condition or not body:
        return None
    inside, root = {one.name: one for one in condition}, condition[-1]
    if root.opcode != "compare" or "direction=LT" not in root.details:
        return None
    counter, limit = (_source(name, inside) for name in root.operands)
    position = _position(counter)
    start, end = _initial(loop, position, operations), _constant(limit)
    if end is None and _is_kept(body, _position(limit)):
        end = _initial(loop, _position(limit), operations)
    step = _step(body, position)
    return None if start is None or end is None or step is None else max(0, -(-(end - start) // step))


def body_of(loop: Operation, module: Module) -> tuple[Operation, ...]:
    """What a ``while`` runs each time, the root last."""
    return module.computations.get(named(loop, "body"), ())


def inner_loops(loop: Operation, module: Module) -> list[tuple[Operation, Mapping[str, Operation]]]:
    """The loops that a ``while`` runs, at any depth, each with the operations of its computation."""
    body = {one.name: one for one in body_of(loop, module)}
    found = [(one, body) for one in body.values() if one.opcode == "while"]
    return found + [inner for one, _ in found for inner in inner_loops(one, module)]


def named(operation: Operation, attribute: str) -> str:
    """The computation that an attribute names; "" if there is none."""
    for text in operation.details.split(", "):
        name, equals, value = text.partition("=")
        if equals and name.strip() == attribute:
            return value.strip().lstrip("%")
    return ""


def _source(name: str, operations: Mapping[str, Operation]) -> Operation | None:
    """What a value was before it was copied."""
    found = operations.get(name)
    while found is not None and found.opcode in COPIES:
        found = operations.get(found.operands[0])
    return found


def _position(operation: Operation | None) -> int | None:
    """Which element of the loop's state an operation is."""
    found = named(operation, "index") if operation is not None and operation.opcode == "get-tuple-element" else ""
    return int(found) if found.isdecimal() else None


def _initial(loop: Operation, position: int | None, operations: Mapping[str, Operation]) -> int | None:
    """The constant that an element of the loop's state begins with."""
    made = operations.get(loop.operands[0])
    if position is None or made is None or made.opcode != "tuple":
        return None
    return _constant(_source(made.operands[position], operations))


def _constant(operation: Operation | None) -> int | None:
    if operation is None or operation.opcode != "constant" or not operation.details.lstrip("-").isdecimal():
        return None
    return int(operation.details)


def _next(body: Sequence[Operation], position: int | None) -> Operation | None:
    """What an element of the loop's state becomes."""
    root = body[-1]
    if position is None or root.opcode != "tuple":
        return None
    return _source(root.operands[position], {one.name: one for one in body})


def _is_kept(body: Sequence[Operation], position: int | None) -> bool:
    return position is not None and _position(_next(body, position)) == position


def _step(body: Sequence[Operation], position: int | None) -> int | None:
    """The constant that a loop's body adds to its counter."""
    added, inside = _next(body, position), {one.name: one for one in body}
    if added is None or added.opcode != "add":
        return None
    operands = [_source(name, inside) for name in added.operands]
    constants = [value for value in map(_constant, operands) if value is not None]
    counters = [one for one in operands if _position(one) == position]
    return constants[0] if len(constants) == len(counters) == 1 and constants[0] > 0 else None
