"""What becomes of old contents in the functional form of a kernel's body, at concrete steps of its grid.

This is the second proof of "does not read" and "covers"; ``refs`` is the first, and neither knows of the other. Here
the body has no references: it takes the values behind them and gives back the values after a step. Followed through it
is where the old contents of a reference go. Each equation's results hold the old contents that its operands hold, but
for those that only move elements or put others in their place. So an equation that is not known can hide nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tpu_lowering.analyse import integers
from tpu_lowering.analyse.functional_body import FunctionalBody, NotUnderstood
from tpu_lowering.ir.jaxprs import CALLS, called, is_literal

ROUNDS = 4  # of a loop that are followed one by one, before what they have in common is sought


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of an array that a slice takes, or its elements in another order.

    Attributes:
        kind: "slice" or "transpose".
        starts: numbers of the values that say where a slice begins; or the order of the dimensions.
        shape: that of the array.
        size: that of the slice.
    """

    kind: str
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    size: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ContentsPlace:
    """Where old contents lie: all of a reference's array, or a part of a part of it."""

    reference: int
    path: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True)
class BodyValue:
    """What is known of a value in the body.

    Attributes:
        number: equal numbers are equal values.
        known: the value itself, of a scalar.
        reads: references whose old contents may have gone into it, in any way.
        place: each of its elements is the old one at this place, or does not depend on the old contents there.
    """

    number: int
    known: integers.Known = None
    reads: frozenset[int] = frozenset()
    place: ContentsPlace | None = None

    @property
    def holds(self) -> frozenset[int]:
        """References whose old contents it may hold."""
        return self.reads if self.place is None else self.reads | {self.place.reference}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a reference's old contents.

    Attributes:
        is_read: they may have influence on anything but the elements that they leave in place.
        is_left: old elements may be left in place.
    """

    is_read: bool
    is_left: bool


def followed(body: FunctionalBody, reference: int, runs: Sequence[Sequence[Sequence[int | None]]]) -> Outcome:
    """Follows the old contents of a reference through steps of the grid.

    Args:
        body: the functional form.
        reference: position of the reference among the body's.
        runs: steps; those of one run visit the same block of the reference, in this order, the first of them for
            the first time. An index that is not known is None.

    Returns:
        The worst of all runs.
    """
    outcomes: list[Outcome] = []
    asked = body.axes()
    different = {tuple(_told_apart(run, asked)): None for run in runs}
    try:
        for run in different:
            outcomes.append(_Follower(body).run(run, reference))
    except NotUnderstood:
        return Outcome(True, True)
    return Outcome(any(found.is_read for found in outcomes), any(found.is_left for found in outcomes))


def _told_apart(run: Sequence[Sequence[int | None]], asked: frozenset[int]) -> list[tuple[int | None, ...]]:
    """A run of steps as a body sees them that asks only for some axes; of equal ones in a row the first two."""
    seen = [tuple(index if axis in asked else None for axis, index in enumerate(step)) for step in run]
    return [step for at, step in enumerate(seen) if seen[max(at - 2, 0) : at] != [step, step]]


def _is_as_known(new: BodyValue, old: BodyValue) -> bool:
    """Whether no more may be held by a value than before, and no less is known of it."""
    return new.holds == old.holds and new.place == old.place and (new.known is None) == (old.known is None)


class _Follower:
    """Follows old contents through the steps of one run."""

    def __init__(self, body: FunctionalBody) -> None:
        self.body = body
        self.numbers: dict[Any, int] = {}
        self.count = 0
        self.ids: tuple[int | None, ...] = ()
        self.escaped: frozenset[int] = frozenset()

    def run(self, steps: Sequence[Sequence[int | None]], reference: int) -> Outcome:
        old = ContentsPlace(reference)
        state = [self.fresh(place=old if at == reference else None) for at in range(len(self.body.closed.jaxpr.invars))]
        is_read = False
        for step in steps:
            self.ids = tuple(step)
            state = self.body_of(self.body.closed, state)
            others = (value.holds for at, value in enumerate(state) if at != reference)
            own = state[reference]
            is_read |= reference in self.escaped.union(own.reads, *others) or own.place not in (None, old)
        return Outcome(is_read, state[reference].place is not None)

    def fresh(self, **facts: Any) -> BodyValue:
        """A value that equals no other."""
        self.count += 1
        return BodyValue(self.count, **facts)

    def numbered(self, key: Any, **facts: Any) -> BodyValue:
        """The value of something that is equal wherever its key is."""
        if key not in self.numbers:
            self.count += 1
            self.numbers[key] = self.count
        return BodyValue(self.numbers[key], **facts)

    def scalar(self, known: integers.Known) -> BodyValue:
        """A value that may be known."""
        return self.fresh() if known is None else self.numbered((str(known.dtype), int(known)), known=known)

    def body_of(self, closed: Any, arguments: Sequence[BodyValue]) -> list[BodyValue]:
        """Follows a closed jaxpr."""
        jaxpr, consts = closed.jaxpr, [self.scalar(integers.constant(value)) for value in closed.consts]
        if len(arguments) != len(jaxpr.invars):
            raise NotUnderstood("another number of operands")
        environment = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom: Any) -> BodyValue:
            return self.scalar(integers.constant(atom.val)) if is_literal(atom) else environment[atom]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(atom) for atom in equation.invars])
            environment.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[BodyValue]) -> list[BodyValue]:
        name = equation.primitive.name
        if name in CALLS:
            return self.body_of(called(equation), values)
        if (control := CONTROL_FLOW.get(name)) is not None:
            return control(self, equation, values)
        held = frozenset[int]().union(*(value.holds for value in values))
        if name in ("program_id", "num_programs"):
            return [self.of_grid(name, equation.params["axis"])]
        if equation.effects:
            self.escaped |= held
        if not held and (known := integers.apply(equation, [value.known for value in values])) is not None:
            return [self.scalar(known)]
        if held and (move := MOVES.get(name)) is not None and (moved := move(self, equation, values)) is not None:
            return [moved]
        if name in integers.PRIMITIVES and equation.outvars[0].aval.shape == ():
            key = (name, str(equation.params), *(value.number for value in values))
            return [self.numbered(key, reads=held)]
        return [self.fresh(reads=held) for _ in equation.outvars]

    def of_grid(self, name: str, axis: int) -> BodyValue:
        number = self.ids[axis] if name == "program_id" else self.body.extents[axis]
        return self.numbered((name, axis, number)) if number is None else self.scalar(np.asarray(number, np.int32))

    def either(self, one: BodyValue, other: BodyValue) -> BodyValue:
        """A value that is one of two."""
        if one == other:
            return one
        places = {value.place for value in (one, other)} - {None}
        reads = one.reads | other.reads
        if len(places) > 1:
            return self.fresh(reads=one.holds | other.holds)
        return self.fresh(reads=reads, place=next(iter(places), None))

    def decided_by(self, condition: BodyValue, results: Sequence[BodyValue]) -> list[BodyValue]:
        """Results of which a condition decides: what it holds has gone into them."""
        if not condition.holds:
            return list(results)
        return [self.fresh(reads=value.holds | condition.holds) for value in results]

    def cond(self, equation: Any, values: list[BodyValue]) -> list[BodyValue]:
        which, *operands = values
        branches = equation.params["branches"]
        if which.known is not None:
            return self.body_of(branches[max(0, min(int(which.known), len(branches) - 1))], operands)
        results = self.body_of(branches[0], operands)
        for branch in branches[1:]:
            results = list(map(self.either, results, self.body_of(branch, operands)))
        return self.decided_by(which, results)

    def scan(self, equation: Any, values: list[BodyValue]) -> list[BodyValue]:
        params = equation.params
        first, end = params["num_consts"], params["num_consts"] + params["num_carry"]
        constants, state = values[:first], values[first:end]
        outputs: list[frozenset[int]] = [frozenset()] * (len(equation.outvars) - len(state))

        def step(state: list[BodyValue]) -> list[BodyValue]:
            items = [self.fresh(reads=value.holds) for value in values[end:]]
            results = self.body_of(params["jaxpr"], [*constants, *state, *items])
            for at, value in enumerate(results[end - first :]):
                outputs[at] |= value.holds
            return results[: end - first]

        for _ in range(min(params["length"], ROUNDS)):
            state = step(state)
        if params["length"] > ROUNDS:
            state = self.repeated(state, step)
        return [*state, *(self.fresh(reads=held) for held in outputs)]

    def while_(self, equation: Any, values: list[BodyValue]) -> list[BodyValue]:
        params = equation.params
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        state = values[second:]

        def goes_on(state: list[BodyValue]) -> BodyValue:
            return self.body_of(params["cond_jaxpr"], [*values[:first], *state])[0]

        def step(state: list[BodyValue]) -> list[BodyValue]:
            return self.body_of(params["body_jaxpr"], [*values[first:second], *state])

        for _ in range(ROUNDS):
            known = goes_on(state).known
            if known is None:
                break
            if not known:
                return state
            state = step(state)
        decisions: list[BodyValue] = []

        def decided(state: list[BodyValue]) -> list[BodyValue]:
            decisions.append(goes_on(state))
            return step(state)

        state = self.repeated(state, decided)
        return self.decided_by(self.fresh(reads=frozenset().union(*(d.holds for d in decisions))), state)

    def repeated(self, state: list[BodyValue], step: Callable[[list[BodyValue]], list[BodyValue]]) -> list[BodyValue]:
        """A state after any number of rounds, none among them: rounds add to what values may hold, up to a limit."""
        while True:
            after = list(map(self.either, state, step(state)))
            if all(map(_is_as_known, after, state)):
                return after
            state = after

    def scoped(self, equation: Any, values: list[BodyValue]) -> list[BodyValue]:
        closed = self.body.without_scope(equation)
        memory = [self.fresh() for _ in range(len(closed.jaxpr.invars) - len(values))]
        return self.body_of(closed, [*values, *memory])[: len(equation.outvars)]

    def sliced(self, equation: Any, values: list[BodyValue]) -> BodyValue | None:
        """``dynamic_slice``: the part of an array, at a place that holds nothing old."""
        array, *starts = values
        if array.place is None or any(start.holds for start in starts):
            return None
        shape, size = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        if shape == size:
            return self.fresh(reads=array.reads, place=array.place)
        part = Part("slice", tuple(start.number for start in starts), shape, size)
        return self.fresh(reads=array.reads, place=ContentsPlace(array.place.reference, (*array.place.path, part)))

    def put(self, equation: Any, values: list[BodyValue]) -> BodyValue | None:
        """``dynamic_update_slice``: a part of an array replaced; all of it, if the part is as large."""
        array, part, *starts = values
        if any(start.holds for start in starts):
            return None
        shape, size = equation.invars[0].aval.shape, equation.invars[1].aval.shape
        if shape == size:
            return part
        if part.place is not None:
            taken = Part("slice", tuple(start.number for start in starts), shape, size)
            if array.place is None or part.place != ContentsPlace(array.place.reference, (*array.place.path, taken)):
                return None
        return self.fresh(reads=array.reads | part.reads, place=array.place)

    def reshaped(self, equation: Any, values: list[BodyValue]) -> BodyValue | None:
        """The same elements in the same order, under another shape."""
        given, result = equation.invars[0].aval, equation.outvars[0].aval
        is_reordered = equation.primitive.name == "reshape" and equation.params.get("dimensions") is not None
        if given.dtype != result.dtype or math.prod(given.shape) != math.prod(result.shape) or is_reordered:
            return None
        return self.fresh(reads=values[0].reads, place=values[0].place)

    def transposed(self, equation: Any, values: list[BodyValue]) -> BodyValue | None:
        place, order = values[0].place, tuple(equation.params["permutation"])
        if place is None:
            return None
        shape, size = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        part, back = Part("transpose", order, shape, size), tuple(int(dim) for dim in np.argsort(order))
        returned = place.path[-1:] == (Part("transpose", back, size, shape),)
        path = place.path[:-1] if returned else (*place.path, part)
        return self.fresh(reads=values[0].reads, place=ContentsPlace(place.reference, path))

    def scattered(self, equation: Any, values: list[BodyValue]) -> BodyValue | None:
        """``scatter``: some elements of an array replaced by others, at places that hold nothing old."""
        array, indices, updates = values
        if indices.holds or updates.place is not None:
            return None
        return self.fresh(reads=array.reads | updates.reads, place=array.place)

    def selected(self, equation: Any, values: list[BodyValue]) -> BodyValue | None:
        """``select_n``: each element one of several, chosen by what holds nothing old."""
        which, *cases = values
        if which.holds:
            return None
        if which.known is not None:
            return cases[int(which.known)]
        result = cases[0]
        for case in cases[1:]:
            result = self.either(result, case)
        return result


CONTROL_FLOW: dict[str, Callable[[_Follower, Any, list[BodyValue]], list[BodyValue]]] = {
    "cond": _Follower.cond,
    "scan": _Follower.scan,
    "while": _Follower.while_,
    "run_scoped": _Follower.scoped,
}

MOVES: dict[str, Callable[[_Follower, Any, list[BodyValue]], BodyValue | None]] = {
    "dynamic_slice": _Follower.sliced,
    "dynamic_update_slice": _Follower.put,
    "scatter": _Follower.scattered,
    "select_n": _Follower.selected,
    "transpose": _Follower.transposed,
    **dict.fromkeys(("squeeze", "reshape", "expand_dims", "broadcast_in_dim", "copy", "copy_p"), _Follower.reshaped),
}
