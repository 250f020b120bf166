"""What the body of a Pallas kernel does to its references: which are read, which written, in what order.

The body is walked once for each kind of visit of a block: the first time the grid comes to it, a later
time, the last time. ``pl.when`` conditions on the grid are decided symbolically (``scalars``), so
"initialise at the first step, accumulate, write at the last" is understood; a condition on data is
walked both ways. An equation that is not understood reads and writes every reference that it names.

This is the first proof that old contents are not read; ``old_contents`` is the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import sympy

from tpu_lowering import compat
from tpu_lowering.analyse import scalars
from tpu_lowering.ir.jaxprs import CALLS, called, is_literal


@dataclasses.dataclass
class RefState:
    """What has happened to one reference so far on one path through the body.

    Attributes:
        read_before_write: a value was loaded that the body had not stored everywhere before.
        written: something was stored.
        filled: on this path every element has been stored.
        loads, stores: the body has a load, or a store, somewhere, on paths that are never taken too.
    """

    read_before_write: bool = False
    written: bool = False
    filled: bool = False
    loads: bool = False
    stores: bool = False

    def load(self) -> None:
        self.loads = True
        self.read_before_write |= not self.filled

    def store(self, whole: bool) -> None:
        self.stores = self.written = True
        self.filled |= whole

    def any_access(self) -> None:
        """What an equation does that is not understood."""
        self.load()
        self.store(whole=False)

    def join(self, other: RefState) -> None:
        """Merges another path: facts that may happen are united, facts that must happen are intersected."""
        self.read_before_write |= other.read_before_write
        self.written |= other.written
        self.filled &= other.filled
        self.mention(other)

    def mention(self, other: RefState) -> None:
        """Takes from a path that is never taken what the body has on it."""
        self.loads |= other.loads
        self.stores |= other.stores

    def become(self, other: RefState) -> None:
        """Takes the state of another path, the only one that is taken."""
        self.read_before_write, self.written, self.filled = other.read_before_write, other.written, other.filled
        self.mention(other)


States = list[RefState]
Touched = Sequence[RefState | None]
"""For each operand of an equation the state of the watched reference that it is, or None."""


def walk(jaxpr: Any, refs: Sequence[int], program_ids: Sequence[scalars.Scalar], grid: Sequence[int | None]) -> States:
    """Walks a kernel body.

    Args:
        jaxpr: the kernel's jaxpr; its input variables are references.
        refs: positions of the input variables to watch.
        program_ids: what ``pl.program_id`` stands for on this visit.
        grid: extents of the grid; None where one depends on data.

    Returns:
        The state of each watched reference at the end of the body.
    """
    walker = _Walker(program_ids, grid)
    states = [RefState() for _ in refs]
    watched = {jaxpr.invars[position]: state for position, state in zip(refs, states, strict=True)}
    walker.body(jaxpr, watched, {})
    return states


class _Walker:
    def __init__(self, program_ids: Sequence[scalars.Scalar], grid: Sequence[int | None]) -> None:
        self.program_ids = program_ids
        self.grid = grid

    def body(self, jaxpr: Any, watched: Mapping[Any, RefState], environment: scalars.Environment) -> None:
        used = {id(atom) for equation in jaxpr.eqns for atom in equation.invars} | {id(a) for a in jaxpr.outvars}
        for equation in jaxpr.eqns:
            touched = [None if is_literal(atom) else watched.get(atom) for atom in equation.invars]
            if not any(touched):
                scalars.step(environment, equation, self.program_ids, self.grid)
                continue
            handler = HANDLERS.get(equation.primitive.name, _Walker.unknown)
            handler(self, equation, touched, environment, used)
            for variable in equation.outvars:
                environment[variable] = None
        for atom in jaxpr.outvars:  # a reference that leaves its scope may be used by anything
            if not is_literal(atom) and (state := watched.get(atom)) is not None:
                state.any_access()

    def unknown(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        for state in filter(None, touched):
            state.any_access()

    def get(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        for state in filter(None, touched):
            state.load()

    def swap(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """A store; ``swap`` also yields the old value, which most stores leave unused."""
        tree = jax.tree.unflatten(equation.params["tree"], equation.invars[2:])
        self._store(equation, touched, used, tree)

    def masked_swap(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """A store of the elements that a mask lets through; without a mask, like ``swap``."""
        tree = jax.tree.unflatten(equation.params["args_tree"], equation.invars)
        whole = len(tree) == 4 and tree[3] is None
        self._store(equation, touched, used, tree[1] if whole else None)

    def _store(self, equation: Any, touched: Touched, used: set[int], transforms: Any) -> None:
        first, *others = touched
        for state in filter(None, others):
            state.any_access()
        if first is None:
            return
        if id(equation.outvars[0]) in used:
            first.load()
        first.store(whole=transforms is not None and is_whole(transforms, equation.invars[0].aval.shape))

    def addupdate(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        for state in filter(None, touched):
            state.any_access()

    def dma_start(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """A copy between references: the source is loaded, the destination stored. Semaphores hold no contents."""
        states = {id(atom): state for atom, state in zip(equation.invars, touched, strict=True) if state is not None}
        found = compat.copied_references(equation)
        if found is None or equation.params.get("add"):
            return self.unknown(equation, touched, environment, used)
        (source, _), (destination, transforms) = found
        if (state := states.get(id(source))) is not None:
            state.load()
        if (state := states.get(id(destination))) is not None:
            state.store(whole=source is not destination and is_whole(transforms, destination.aval.shape))
        return None

    def dma_wait(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """Waiting for a copy touches no contents."""

    def cond(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        which = scalars.read(environment, equation.invars[0])
        branches, taken = equation.params["branches"], None
        if which is not None:
            which = sympy.simplify(which) if which.free_symbols else which
            if which.is_Integer:
                taken = max(0, min(int(which), len(branches) - 1))  # type: ignore[call-overload]
        before = [state for state in touched[1:] if state is not None]
        ends = [self._branch(branch, equation.invars[1:], touched[1:], environment) for branch in branches]
        for at, state in enumerate(before):
            state.become(ends[taken or 0][at])
            for end in ends:
                if taken is None:
                    state.join(end[at])
                state.mention(end[at])

    def _branch(
        self, branch: Any, atoms: Sequence[Any], touched: Touched, environment: Mapping[Any, Any]
    ) -> list[RefState]:
        copies: dict[int, RefState] = {}
        for state in touched:
            if state is not None:
                copies.setdefault(id(state), dataclasses.replace(state))
        self.enter(branch, atoms, [None if s is None else copies[id(s)] for s in touched], environment)
        return [copies[id(state)] for state in touched if state is not None]

    def scan(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """A counted loop. Loop-carried scalars are unknown; a body that never runs does nothing."""
        after = self._branch(equation.params["jaxpr"], equation.invars, touched, {})
        self._after(touched, after, runs=equation.params["length"] > 0)

    def while_(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """A loop that may run zero times: what it stores does not count as filled."""
        filled = [state.filled if state is not None else False for state in touched]
        cond_count, body_count = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        runs = self._first_decision(equation, environment) is not sympy.false
        carry = list(range(cond_count + body_count, len(equation.invars)))
        for jaxpr, constants in (
            (equation.params["cond_jaxpr"], range(cond_count)),
            (equation.params["body_jaxpr"], range(cond_count, cond_count + body_count)),
        ):
            positions = [*constants, *carry]
            given = [touched[p] for p in positions]
            after = self._branch(jaxpr, [equation.invars[p] for p in positions], given, {})
            self._after(given, after, runs)
        for state, was in zip(touched, filled, strict=True):
            if state is not None:
                state.filled = was

    def _first_decision(self, equation: Any, environment: Mapping[Any, Any]) -> scalars.Scalar:
        """Whether a loop runs at all, if that is known before its first round."""
        count, skipped = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        values = [scalars.read(environment, atom) for atom in equation.invars]
        given = [*values[:count], *values[count + skipped :]]
        return scalars.evaluate(equation.params["cond_jaxpr"], given, self.program_ids, self.grid)[0]

    def _after(self, touched: Touched, ends: Sequence[RefState], runs: bool) -> None:
        """States after a body; one that does not run only mentions what it has."""
        for state, end in zip([state for state in touched if state is not None], ends, strict=True):
            (state.become if runs else state.mention)(end)

    def call(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        self.enter(called(equation), equation.invars, touched, environment)

    def run_scoped(self, equation: Any, touched: Touched, environment: Any, used: set[int]) -> None:
        """The body's outer references are constants of its jaxpr; its inputs are the scoped ones."""
        jaxpr = equation.params["jaxpr"]
        watched = {var: state for var, state in zip(jaxpr.constvars, touched, strict=True) if state is not None}
        inner = {
            var: scalars.read(environment, atom) for var, atom in zip(jaxpr.constvars, equation.invars, strict=True)
        }
        self.body(jaxpr, watched, inner)

    def enter(self, closed: Any, atoms: Sequence[Any], touched: Touched, environment: Mapping[Any, Any]) -> None:
        jaxpr = getattr(closed, "jaxpr", closed)
        watched = {var: state for var, state in zip(jaxpr.invars, touched, strict=True) if state is not None}
        inner = {
            var: scalars.read(environment, atom)
            for var, atom, state in zip(jaxpr.invars, atoms, touched, strict=True)
            if state is None
        }
        for var, value in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=False):
            inner[var] = scalars.constant(value)
        self.body(jaxpr, watched, inner)


HANDLERS: dict[str, Callable[[_Walker, Any, Touched, Any, set[int]], None]] = {
    "get": _Walker.get,
    "masked_load": _Walker.get,
    "swap": _Walker.swap,
    "masked_swap": _Walker.masked_swap,
    "addupdate": _Walker.addupdate,
    "dma_start": _Walker.dma_start,
    "dma_wait": _Walker.dma_wait,
    "cond": _Walker.cond,
    "scan": _Walker.scan,
    "while": _Walker.while_,
    "run_scoped": _Walker.run_scoped,
    **dict.fromkeys(CALLS, _Walker.call),
}


def is_whole(transforms: Any, shape: tuple[int, ...]) -> bool:
    """Whether an access goes to every element: no transform, or one of slices that each take a whole dimension."""
    if not transforms:
        return True
    first, *others = transforms
    if not hasattr(first, "indices") or not all(map(_takes_all, first.indices, shape)):
        return False
    seen = tuple(size for index, size in zip(first.indices, shape, strict=True) if hasattr(index, "stride"))
    return is_whole(others, seen)


def _takes_all(index: Any, size: int) -> bool:
    """Whether an index takes a whole dimension: all of it as a slice, or the only element there is."""
    if hasattr(index, "stride"):
        return _as_int(index.start) == 0 and _as_int(index.size) == size and index.stride == 1
    return size == 1


def _as_int(value: Any) -> int | None:
    value = getattr(value, "val", value)
    try:
        return int(value)
    except TypeError:
        return None


# Operands of an access that come before its indices: the reference, and the value to store. All others may be indices.
_BEFORE_INDICES = {"get": 1, "swap": 2, "addupdate": 2, "dma_start": 0}


def indexing_dimensions(jaxpr: Any) -> set[int]:
    """Grid dimensions whose ``program_id`` goes into the position of a load, a store or a copy in a kernel body."""
    found: set[int] = set()
    _follow_program_ids(jaxpr, {}, found)
    return found


def _follow_program_ids(jaxpr: Any, sources: dict[Any, set[int]], found: set[int]) -> None:
    """Follows grid dimensions through a jaxpr; ``sources`` says which ones each variable comes from."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        given = [set[int]() if is_literal(atom) else sources.get(atom, set[int]()) for atom in equation.invars]
        if name in _BEFORE_INDICES:
            found.update(*given[_BEFORE_INDICES[name] :])
        elif name in ("masked_load", "masked_swap"):
            found.update(*jax.tree.leaves(jax.tree.unflatten(equation.params["args_tree"], given)[1]))
        for inner in compat.jaxprs_in(equation.params):
            _follow_program_ids(inner, _entering(equation, inner, given), found)
        dims = {equation.params["axis"]} if name == "program_id" else set().union(*given)
        sources.update((variable, dims) for variable in equation.outvars)


def _entering(equation: Any, inner: Any, given: Sequence[set[int]]) -> dict[Any, set[int]]:
    """What the variables of a jaxpr inside an equation come from; where they do not line up, from every operand."""
    if equation.primitive.name == "run_scoped":
        return dict(zip(inner.constvars, given, strict=True))
    skipped = 1 if equation.primitive.name == "cond" else 0
    aligned = given[skipped:]
    if len(aligned) != len(inner.invars):
        everything = set[int]().union(*given)
        return dict.fromkeys([*inner.constvars, *inner.invars], everything)
    return dict(zip(inner.invars, aligned, strict=True))
