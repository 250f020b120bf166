"""What the body of a Pallas kernel does to its references: which are read, which written, in what order.

The body is walked once for each kind of visit of a block: the first time the grid comes to it, a later
time, the last time. ``pl.when`` conditions on the grid are decided symbolically (``scalars``), so
"initialise at the first step, accumulate, write at the last" is understood; a condition on data is
walked both ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import sympy

from tpu_lowering import compat
from tpu_lowering.analyse import scalars


@dataclasses.dataclass
class RefState:
    """What has happened to one reference so far on one path through the body.

    Attributes:
        read_before_write: a value was loaded that the body had not stored everywhere before.
        written: something was stored.
        filled: on this path every element has been stored.
    """

    read_before_write: bool = False
    written: bool = False
    filled: bool = False

    def load(self) -> None:
        self.read_before_write |= not self.filled

    def store(self, whole: bool) -> None:
        self.written = True
        self.filled |= whole

    def join(self, other: RefState) -> None:
        """Merges another path: facts that may happen are united, facts that must happen are intersected."""
        self.read_before_write |= other.read_before_write
        self.written |= other.written
        self.filled &= other.filled


States = list[RefState]


def walk(jaxpr: Any, refs: Sequence[int], program_ids: Sequence[scalars.Scalar], grid: Sequence[int]) -> States:
    """Walks a kernel body.

    Args:
        jaxpr: the kernel's jaxpr; its input variables are references.
        refs: positions of the input variables to watch.
        program_ids: what ``pl.program_id`` stands for on this visit.
        grid: extents of the grid.

    Returns:
        The state of each watched reference at the end of the body.
    """
    walker = _Walker(program_ids, grid)
    states = [RefState() for _ in refs]
    watched = {jaxpr.invars[position]: state for position, state in zip(refs, states, strict=True)}
    walker.body(jaxpr, watched, {})
    return states


class _Walker:
    def __init__(self, program_ids: Sequence[scalars.Scalar], grid: Sequence[int]) -> None:
        self.program_ids = program_ids
        self.grid = grid

    def body(self, jaxpr: Any, watched: dict[Any, RefState], environment: scalars.Environment) -> None:
        used = {id(atom) for equation in jaxpr.eqns for atom in equation.invars} | {id(a) for a in jaxpr.outvars}
        for equation in jaxpr.eqns:
            touched = [watched.get(atom) if not hasattr(atom, "val") else None for atom in equation.invars]
            if not any(touched):
                scalars.step(environment, equation, self.program_ids, self.grid)
                continue
            handler = HANDLERS.get(equation.primitive.name, _Walker.unknown)
            handler(self, equation, touched, environment, used)
            for variable in equation.outvars:
                environment[variable] = None

    def unknown(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """A primitive that this walker does not know: it may do anything to the references it is given."""
        for state in filter(None, touched):
            state.load()
            state.store(whole=False)

    def get(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        assert touched[0] is not None
        touched[0].load()

    def swap(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """A store; ``swap`` also yields the old value, which most stores leave unused."""
        state = touched[0]
        if state is None:
            return
        if id(equation.outvars[0]) in used:
            state.load()
        tree = jax.tree.unflatten(equation.params["tree"], equation.invars[2:])
        state.store(whole=is_whole(tree, equation.invars[0].aval.shape))

    def addupdate(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        if touched[0] is not None:
            touched[0].load()
            touched[0].store(whole=False)

    def dma_start(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """A copy between references: the source is loaded, the destination stored."""
        operands = jax.tree.unflatten(equation.params["tree"], equation.invars)
        states = dict(zip(map(id, equation.invars), touched, strict=True))
        source, destination = operands[0], operands[2]
        if (state := states.get(id(source))) is not None:
            state.load()
        if (state := states.get(id(destination))) is not None:
            state.store(whole=is_whole(operands[3], destination.aval.shape))

    def dma_wait(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """Waiting for a copy touches no contents."""

    def cond(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        which = scalars.read(environment, equation.invars[0])
        branches = equation.params["branches"]
        if which is not None:
            which = sympy.simplify(which) if which.free_symbols else which
            if which.is_Integer:
                branches = (branches[int(which)],)  # type: ignore[call-overload]
        ends = [self._branch(branch, equation.invars[1:], touched[1:], environment) for branch in branches]
        for state, *others in zip([s for s in touched[1:] if s is not None], *ends, strict=True):
            state.read_before_write, state.written, state.filled = dataclasses.astuple(others[0])
            for other in others[1:]:
                state.join(other)

    def _branch(
        self, branch: Any, atoms: Sequence[Any], touched: Sequence[RefState | None], environment: Mapping[Any, Any]
    ) -> list[RefState]:
        copies: dict[int, RefState] = {}
        for state in touched:
            if state is not None:
                copies.setdefault(id(state), dataclasses.replace(state))
        self.enter(branch, atoms, [None if s is None else copies[id(s)] for s in touched], environment)
        return [copies[id(state)] for state in touched if state is not None]

    def scan(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """A counted loop. Loop-carried scalars are unknown; a body that never runs stores nothing."""
        before = [dataclasses.replace(state) if state is not None else None for state in touched]
        self.enter(equation.params["jaxpr"], equation.invars, touched, {})
        if equation.params["length"] == 0:
            for state, old in zip(touched, before, strict=True):
                if state is not None and old is not None:
                    state.read_before_write, state.written, state.filled = dataclasses.astuple(old)

    def while_(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """A loop that may run zero times: what it stores does not count as filled."""
        filled = [state.filled if state is not None else False for state in touched]
        cond_count, body_count = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        carry = list(range(cond_count + body_count, len(equation.invars)))
        for jaxpr, constants in (
            (equation.params["cond_jaxpr"], range(cond_count)),
            (equation.params["body_jaxpr"], range(cond_count, cond_count + body_count)),
        ):
            positions = [*constants, *carry]
            self.enter(jaxpr, [equation.invars[p] for p in positions], [touched[p] for p in positions], {})
        for state, was in zip(touched, filled, strict=True):
            if state is not None:
                state.filled = was

    def call(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        jaxpr = next(equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params)
        self.enter(jaxpr, equation.invars, touched, environment)

    def run_scoped(self, equation: Any, touched: Sequence[RefState | None], environment: Any, used: set[int]) -> None:
        """The body's outer references are constants of its jaxpr; its inputs are the scoped ones."""
        jaxpr = equation.params["jaxpr"]
        watched = {var: state for var, state in zip(jaxpr.constvars, touched, strict=True) if state is not None}
        inner = {
            var: scalars.read(environment, atom) for var, atom in zip(jaxpr.constvars, equation.invars, strict=True)
        }
        self.body(jaxpr, watched, inner)

    def enter(
        self, closed: Any, atoms: Sequence[Any], touched: Sequence[RefState | None], environment: Mapping[Any, Any]
    ) -> None:
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


HANDLERS = {
    "get": _Walker.get,
    "swap": _Walker.swap,
    "addupdate": _Walker.addupdate,
    "dma_start": _Walker.dma_start,
    "dma_wait": _Walker.dma_wait,
    "cond": _Walker.cond,
    "scan": _Walker.scan,
    "while": _Walker.while_,
    "jit": _Walker.call,
    "pjit": _Walker.call,
    "closed_call": _Walker.call,
    "core_call": _Walker.call,
    "custom_jvp_call": _Walker.call,
    "custom_vjp_call": _Walker.call,
    "run_scoped": _Walker.run_scoped,
}


def is_whole(transforms: Any, shape: tuple[int, ...]) -> bool:
    """Whether an access goes to every element: no transform, or slices that each take a whole dimension."""
    if not transforms:
        return True
    if len(transforms) != 1 or not hasattr(transforms[0], "indices"):
        return False
    return all(map(_takes_all, transforms[0].indices, shape))


def _takes_all(index: Any, size: int) -> bool:
    """Whether an index takes a whole dimension: all of it as a slice, or the only element there is."""
    if hasattr(index, "size"):
        return _as_int(index.start) == 0 and _as_int(index.size) == size and index.stride == 1
    return size == 1


def _as_int(value: Any) -> int | None:
    value = getattr(value, "val", value)
    try:
        return int(value)
    except TypeError:
        return None


# Operands of an access that come before its indices: the reference, and the value to store.
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
        given = [set[int]() if hasattr(atom, "val") else sources.get(atom, set[int]()) for atom in equation.invars]
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
