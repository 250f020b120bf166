"""The rounds of an unrolled loop at once, where none of them waits for another.

A body that takes a row in pieces, in a loop that Python unrolled, holds the same operations once for each piece. XLA
copies each piece and computes it on its own, and writes it into a copy of the result. Here pieces that lie side by
side become one array with one more dimension, and operations that are the same for all of them one operation::

    a, b = x[:, :512], x[:, 512:]                     pieces = x.reshape(-1, 2, 512)
    m = max(a.max(1), b.max(1))                 ->    maxima = pieces.max(2); m = max(maxima[:, 0], maxima[:, 1])
    out[:, :512], out[:, 512:] = a - m, b - m         out[...] = (pieces - m[:, None, None]).reshape(out.shape)

What a round hands to the next is computed one after the other, as before. Each element is computed as before.
"""

from __future__ import annotations

import collections
import graphlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from tpu_lowering.analyse.pointwise import ELEMENTWISE
from tpu_lowering.ir.jaxprs import CALLS, is_literal, mentions
from tpu_lowering.kernels.evaluation import STEP, evaluate
from tpu_lowering.kernels.rounds import REDUCTIONS, Rounds, Store, Unit, Values, rounds_of
from tpu_lowering.kernels.straight_line import SLICES, Node, StraightLine, identity

MERGED = ELEMENTWISE | REDUCTIONS | {"broadcast_in_dim"}
"""Primitives whose rounds can be one operation."""

STACKED = 8  # what is computed one after the other is put together if it has at most so small a part of a piece's size


def merged(closed: Any) -> Any:
    """A kernel body without references, its rounds at once; the same object if there are none.

    Args:
        closed: the body, from ``compat.discharged``.
    """
    if mentions(closed.jaxpr, (*STEP, "run_scoped")) or not mentions(closed.jaxpr, SLICES):
        return closed
    specs = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in closed.jaxpr.invars]

    def inlined(*arguments: Any) -> list[Any]:
        return evaluate(closed.jaxpr, closed.consts, arguments, lambda equation, values: None)

    calls = any(equation.primitive.name in CALLS for equation in closed.jaxpr.eqns)
    flat = jax.make_jaxpr(inlined)(*specs) if calls else closed
    line = StraightLine.of(flat.jaxpr)
    found = None if line is None else _Loops(line)
    if found is None or not found.rounds or (units := found.units()) is None:
        return closed
    return jax.make_jaxpr(lambda *arguments: _evaluated(flat, found, units, arguments))(*specs)


class _Loops:
    """Finds the rounds of a straight line."""

    def __init__(self, line: StraightLine) -> None:
        self.line = line
        self.rounds: dict[Any, Rounds] = {}  # by results of their equations
        self.users: dict[Any, list[Node]] = collections.defaultdict(list)
        for node in line.nodes.values():
            for atom in {id(atom): atom for atom in node.operands if not is_literal(atom)}.values():
                self.users[atom].append(node)
        pending = list(self._pieces())
        self.small = max((math.prod(rounds.nodes[0].shape) for rounds in pending), default=0) // STACKED
        while pending:
            for nodes in self._alike(pending.pop()):
                found = self._merge(nodes)
                if found is not None:
                    pending.append(found)
        self.stores = {store.nodes[-1].result: store for store in self._stores()}
        gaining = [rounds for rounds in self.rounds.values() if rounds.nodes[0].name in REDUCTIONS]
        self._keep_alone([*gaining, *(store.stored for store in self.stores.values())])

    def _pieces(self) -> Iterator[Rounds]:
        """Slices of one array that lie side by side."""
        found: dict[Any, list[Node]] = collections.defaultdict(list)
        for node in self.line.nodes.values():
            if node.name in SLICES and node.start is not None:
                for dim in range(len(node.start)):
                    others = (node.start[:dim], node.start[dim + 1 :])
                    found[(identity(node.operands[0]), node.shape, dim, others)].append(node)
        for (_, shape, dim, *_), nodes in found.items():
            at = {node.start[dim]: node for node in nodes if node.start is not None}
            for first in sorted(at):
                ends = itertools.takewhile(at.__contains__, itertools.count(first, max(1, shape[dim])))
                run = tuple(map(at.__getitem__, ends)) if first - shape[dim] not in at else ()
                if len(run) > 1 and not any(node.result in self.rounds for node in run):
                    yield self._keep(Rounds(run, (), dim))

    def _keep(self, rounds: Rounds) -> Rounds:
        self.rounds.update(dict.fromkeys(rounds.results, rounds))
        return rounds

    def _keep_alone(self, pending: list[Rounds]) -> None:
        """Forgets the rounds that lead to no reduction and to no store: XLA computes each where it is needed."""
        kept: set[Rounds] = set()
        while pending:
            rounds = pending.pop()
            if rounds not in kept:
                kept.add(rounds)
                given = (rounds_of(operand, self.rounds) for operand in rounds.operands)
                pending += [operand for operand in given if operand is not None]
        self.rounds = {result: rounds for result, rounds in self.rounds.items() if rounds in kept}

    def _alike(self, rounds: Rounds) -> Iterator[tuple[Node, ...]]:
        """Equations that use the results of rounds in the same way, one a round."""
        by_kind: list[dict[Any, list[Node]]] = []
        for result in rounds.results:
            own: dict[Any, list[Node]] = collections.defaultdict(list)
            for node in self.users[result]:
                own[(node.kind, tuple(atom is result for atom in node.operands))].append(node)
            by_kind.append(own)
        for kind in by_kind[0]:
            yield from zip(*(own.get(kind, []) for own in by_kind), strict=False)

    def _merge(self, nodes: Sequence[Node], axis: int | None = None) -> Rounds | None:
        """The equations as one operation; None if they cannot be."""
        name, kind = nodes[0].name, nodes[0].kind
        if name not in MERGED or any(node.result in self.rounds or node.kind != kind for node in nodes):
            return None
        if len({node.result for node in nodes}) < len(nodes) or self._wait(nodes):
            return None
        operands: dict[int, Any] = {}
        for at in sorted(range(len(nodes[0].operands)), key=lambda at: self._is_last(nodes[0].operands[at])):
            operands[at] = self._operand([node.operands[at] for node in nodes], axis)
            same = nodes[0].operands[at].aval.shape == nodes[0].shape
            if axis is None and same and isinstance(operands[at], Rounds):
                axis = operands[at].axis
        if None in operands.values() or any(node.result in self.rounds for node in nodes) or self._wait(nodes):
            return None  # what was merged on the way may have changed that
        given = tuple(operands[at] for at in sorted(operands))
        at = _axis(nodes[0], given, axis)
        return None if at is None else self._keep(Rounds(tuple(nodes), given, at))

    def _is_last(self, atom: Any) -> int:
        """When the rounds of an operand are found: first those that are there; broadcasts as the others need them."""
        node = None if is_literal(atom) else self.line.nodes.get(atom)
        if node is None or node.name == "broadcast_in_dim":
            return 2
        return 0 if atom in self.rounds else 1

    def _operand(self, atoms: Sequence[Any], axis: int | None) -> Any | None:
        """An operand of an operation, of which each round has its own."""
        if len(set(map(identity, atoms))) == 1:
            return atoms[0]
        known = None if is_literal(atoms[0]) else self.rounds.get(atoms[0])
        if known is not None:
            return known if list(known.results) == list(atoms) else None
        if math.prod(atoms[0].aval.shape) <= self.small:
            return tuple(atoms)
        nodes = [None if is_literal(atom) else self.line.nodes.get(atom) for atom in atoms]
        return None if None in nodes else self._merge([node for node in nodes if node is not None], axis)

    def _wait(self, nodes: Sequence[Node]) -> bool:
        """Whether one of some equations needs the result of another."""
        results = {node.result for node in nodes}
        pending = [atom for node in nodes for atom in node.operands]
        seen: set[Any] = set()
        while pending:
            atom = pending.pop()
            if is_literal(atom) or atom in seen:
                continue
            if atom in results:
                return True
            seen.add(atom)
            if atom in self.line.nodes:
                together = self.rounds[atom].nodes if atom in self.rounds else (self.line.nodes[atom],)
                pending += [operand for node in together for operand in node.operands]
        return False

    def _stores(self) -> Iterator[Store]:
        for rounds in set(self.rounds.values()):
            for first in self.users[rounds.results[0]]:
                nodes = [first]
                for _ in rounds.nodes[1:]:
                    nodes += self.users[nodes[-1].result][:1]
                if len(nodes) == len(rounds.nodes) and self._is_store(nodes, rounds):
                    yield Store(tuple(nodes), rounds)

    def _is_store(self, nodes: Sequence[Node], rounds: Rounds) -> bool:
        """Whether updates store the results of rounds side by side, and nothing else sees the array between them."""
        for number, (node, result) in enumerate(zip(nodes, rounds.results, strict=True)):
            if node.name != "dynamic_update_slice" or node.start is None or node.operands[1] is not result:
                return False
            if number and (node.operands[0] is not nodes[number - 1].result or node.operands[0] in self.line.results):
                return False
            if number + 1 < len(nodes) and len(self.users[node.result]) != 1:
                return False
        start, size = nodes[0].start, rounds.nodes[0].shape[rounds.axis]
        return start is not None and all(
            node.start == tuple(at + number * size * (dim == rounds.axis) for dim, at in enumerate(start))
            for number, node in enumerate(nodes)
        )

    def unit(self, variable: Any) -> Unit | None:
        """What computes a variable; None for an input."""
        return self.stores.get(variable) or self.rounds.get(variable) or self.line.nodes.get(variable)

    def needs(self, unit: Unit) -> list[Any]:
        """The variables that a unit is computed from."""
        match unit:
            case Store():
                atoms = [unit.nodes[0].operands[0], *unit.stored.results]
            case Rounds(operands=()):
                atoms = [unit.nodes[0].operands[0]]
            case Rounds():
                atoms = [atom for node in unit.nodes for atom in node.operands]
            case Node():
                atoms = list(unit.operands)
        return [atom for atom in atoms if not is_literal(atom)]

    def units(self) -> list[Unit] | None:
        """What is to be computed, in order; None if rounds would wait for each other."""
        graph: dict[Unit, list[Unit]] = {}
        pending = [unit for atom in self.line.results if not is_literal(atom) and (unit := self.unit(atom)) is not None]
        while pending:
            unit = pending.pop()
            if unit not in graph:
                graph[unit] = [needed for atom in self.needs(unit) if (needed := self.unit(atom)) is not None]
                pending += graph[unit]
        try:
            return list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError:
            return None


def _axis(node: Node, operands: Sequence[Any], wanted: int | None) -> int | None:
    """The dimension that counts rounds in the result of an operation; None if its operand has none.

    Args:
        wanted: where it is best; reductions have no choice.
    """
    if node.name in REDUCTIONS:
        (operand,) = operands
        axes = node.equation.params["axes"]
        return operand.axis - sum(axis < operand.axis for axis in axes) if isinstance(operand, Rounds) else None
    if wanted is not None:
        return wanted
    if node.name == "broadcast_in_dim" and isinstance(operands[0], Rounds):
        return (*node.equation.params["broadcast_dimensions"], len(node.shape))[operands[0].axis]
    return 0


def _evaluated(flat: Any, loops: _Loops, units: Sequence[Unit], arguments: Sequence[Any]) -> list[Any]:
    """The results of the body."""
    jaxpr = flat.jaxpr
    given = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*flat.consts, *arguments], strict=True))
    values = Values(loops.line, loops.rounds, given)
    for unit in units:
        values.compute(unit)
    return [values.of(atom) for atom in loops.line.results]
