"""What the rounds of an unrolled loop compute, as one array with a dimension that counts rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.jaxprs import is_literal
from tpu_lowering.kernels.straight_line import SLICES, Node, StraightLine

REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_min"))


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """Equations that do the same, one a round, as one operation.

    Attributes:
        nodes: the equations, by round.
        operands: of the operation: ``Rounds``, or what all rounds share, or a tuple of one operand a round.
        axis: the dimension of the result that counts rounds.
    """

    nodes: tuple[Node, ...]
    operands: tuple[Any, ...]
    axis: int

    @property
    def results(self) -> tuple[Any, ...]:
        return tuple(node.result for node in self.nodes)


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """What all rounds store side by side, as one store.

    Attributes:
        nodes: the updates, each of the result of the one before.
        stored: their values.
    """

    nodes: tuple[Node, ...]
    stored: Rounds


Unit = Node | Rounds | Store


def rounds_of(operand: Any, rounds: Mapping[Any, Rounds]) -> Rounds | None:
    """The rounds whose results an operand is: as one, or as a tuple of one a round."""
    if isinstance(operand, Rounds):
        return operand
    found = rounds.get(operand[0]) if isinstance(operand, tuple) and not is_literal(operand[0]) else None
    return found if found is not None and found.results == operand else None


class Values:
    """Values while a straight line is evaluated."""

    def __init__(self, line: StraightLine, rounds: Mapping[Any, Rounds], given: dict[Any, Any]) -> None:
        self.line, self.rounds, self.single = line, rounds, given
        self.together: dict[Rounds, jax.Array] = {}

    def of(self, atom: Any) -> Any:
        """The value of an operand of one equation."""
        if is_literal(atom):
            return atom.val
        rounds = self.rounds.get(atom)
        if rounds is None or atom in self.single:
            return self.single[atom]
        if not rounds.operands:
            return self._piece(self.line.nodes[atom])
        return jax.lax.index_in_dim(self.together[rounds], rounds.results.index(atom), rounds.axis, keepdims=False)

    def compute(self, unit: Unit) -> None:
        match unit:
            case Store():
                self.single[unit.nodes[-1].result] = self._stored(unit)
            case Rounds(operands=()):
                self.together[unit] = self._pieces(unit)
            case Rounds():
                self.together[unit] = self._operation(unit)
            case Node() if unit.name in SLICES and unit.start is not None:
                self.single[unit.result] = self._piece(unit)
            case Node():
                (self.single[unit.result],) = compat.bind(unit.equation, list(map(self.of, unit.operands)))

    def _piece(self, node: Node) -> jax.Array:
        assert node.start is not None
        ends = [at + size for at, size in zip(node.start, node.shape, strict=True)]
        return jax.lax.slice(self.of(node.operands[0]), node.start, ends)

    def _pieces(self, rounds: Rounds) -> jax.Array:
        node, count, axis = rounds.nodes[0], len(rounds.nodes), rounds.axis
        assert node.start is not None
        sizes = [size * (count if dim == axis else 1) for dim, size in enumerate(node.shape)]
        ends = [at + size for at, size in zip(node.start, sizes, strict=True)]
        whole = jax.lax.slice(self.of(node.operands[0]), node.start, ends)
        return whole.reshape(*node.shape[:axis], count, *node.shape[axis:])

    def _stored(self, store: Store) -> jax.Array:
        rounds, node = store.stored, store.nodes[0]
        assert node.start is not None
        array, axis, count = node.operands[0], rounds.axis, len(rounds.nodes)
        shape = [size * (count if dim == axis else 1) for dim, size in enumerate(rounds.nodes[0].shape)]
        whole = self.together[rounds].reshape(shape)
        if tuple(shape) == array.aval.shape:
            return whole
        return jax.lax.dynamic_update_slice(self.of(array), whole, [jnp.int32(at) for at in node.start])

    def _operation(self, rounds: Rounds) -> jax.Array:
        node, axis = rounds.nodes[0], rounds.axis
        equation, params = node.equation, node.equation.params
        shape = (*node.shape[:axis], len(rounds.nodes), *node.shape[axis:])
        if node.name in REDUCTIONS:
            (operand,) = rounds.operands
            axes = tuple(at + (at >= operand.axis) for at in params["axes"])
            (result,) = compat.bind(equation.replace(params={**params, "axes": axes}), [self.together[operand]])
            return result
        if node.name == "broadcast_in_dim":
            dims = params["broadcast_dimensions"]
            before = sum(dim < axis for dim in dims)
            value = self._with_axis(rounds.operands[0], before)
            moved = [*dims[:before], axis, *(dim + 1 for dim in dims[before:])]
            return jax.lax.broadcast_in_dim(value, shape, moved)
        if node.name == "select_n" and all(self._is_true(each.operands[0]) for each in rounds.nodes):
            return self._spread(node, rounds, 2, shape)
        values = [self._spread(node, rounds, at, shape) for at in range(len(node.operands))]
        (result,) = compat.bind(equation, values)
        return result

    def _is_true(self, atom: Any) -> bool:
        """Whether all elements are known to be true."""
        known = None if is_literal(atom) else self.line.known.get(atom)
        return known is not None and known.dtype == bool and bool(known.all())

    def _spread(self, node: Node, rounds: Rounds, at: int, shape: Sequence[int]) -> Any:
        """An operand of an elementwise operation, in the shape of the result; a number that is shared as it is."""
        operand, rank = rounds.operands[at], len(node.operands[at].aval.shape)
        if not isinstance(operand, (Rounds, tuple)):
            value = self.of(operand)
            if rank == 0:
                return value if node.shape else jnp.broadcast_to(value, shape)
            return jnp.broadcast_to(jnp.expand_dims(value, rounds.axis), shape)
        if rank == 0:
            value = self._with_axis(operand, 0).reshape([-1 if dim == rounds.axis else 1 for dim in range(len(shape))])
        else:
            value = self._with_axis(operand, rounds.axis)
        return jnp.broadcast_to(value, shape)

    def _with_axis(self, operand: Rounds | tuple[Any, ...], axis: int) -> jax.Array:
        """An operand of which each round has its own, with a dimension for them."""
        together = rounds_of(operand, self.rounds)
        if together is not None:
            return jnp.moveaxis(self.together[together], together.axis, axis)
        assert isinstance(operand, tuple)
        return jnp.stack([jnp.asarray(self.of(atom), atom.aval.dtype) for atom in operand], axis)
