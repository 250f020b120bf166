"""A pipeline inside the steps of a grid, as one more dimension of the grid.

Helion writes a loop in a kernel as ``pltpu.emit_pipeline`` inside each step, over arrays that stay in HBM until then::

    grid (i, j):     total = 0; pipeline over k: total += a[i, k] @ b[k, j]; out[i, j] = total

Every step then fills and drains a pipeline of its own. As one grid, blocks are fetched ahead from step to step::

    grid (i, j, k):  if k == 0: total = 0;       total += a[i, k] @ b[k, j]; if k == last: out[i, j] = total

What the body computes before its pipeline and needs later is computed in every step, so it may be no more than loads
of operands and cheap arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import compat
from tpu_lowering.kernels.evaluation import STEP, evaluate, mentions
from tpu_lowering.kernels.pipelines import EmitPipeline, divides, sequence

DEAR = (
    "dot_general", "conv_general_dilated", "scan", "while", "cond", "run_scoped", "reduce_sum", "reduce_max",
    "reduce_min", "reduce_prod", "argmax", "argmin", "cumsum", "sort", "exp", "exp2", "log", "tanh", "logistic", "erf",
    "sin", "cos", "pow", "div", "sqrt", "rsqrt",
)  # fmt: skip
"""Primitives that are not repeated in every step."""


@dataclasses.dataclass(frozen=True, eq=False)
class PallasCall:
    """What a ``pallas_call`` without aliases is built of.

    Attributes:
        body: from a function that stands for ``pltpu.emit_pipeline`` to the body over references: inputs, outputs,
            scratch.
        grid: its extents.
        in_specs: blocks of the inputs.
        out_specs: blocks of the outputs.
        scratch: scratch buffers, as Pallas types.
    """

    body: Callable[[EmitPipeline], Callable[..., None]]
    grid: tuple[int, ...]
    in_specs: tuple[pl.BlockSpec, ...]
    out_specs: tuple[pl.BlockSpec, ...]
    scratch: tuple[Any, ...]


def flattened(call: PallasCall, inputs: Sequence[Any], outputs: Sequence[Any]) -> PallasCall | None:
    """The call with its pipeline in the grid; None if it has not one pipeline that can be there.

    Args:
        call: the call.
        inputs: shapes and dtypes of the inputs.
        outputs: those of the outputs.
    """
    found = _only_pipeline(call, inputs, outputs)
    if found is None:
        return None
    parts = _Parts.of(_marked(call, found, inputs, outputs), found, len(inputs))
    return None if parts is None else _Flat(call, found, parts).call()


@dataclasses.dataclass(frozen=True, eq=False)
class _Pipeline:
    """A pipeline as a body starts it.

    Attributes:
        extent: steps of its grid, which has one dimension.
        specs: its blocks, of what it reads, then of what it writes.
        refs: for each, the position among the body's references of the array in HBM.
        dtypes: for each, the dtype.
    """

    extent: int
    specs: tuple[pl.BlockSpec, ...]
    refs: tuple[int, ...]
    dtypes: tuple[Any, ...]

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """The shape of each block."""
        shapes: list[tuple[Any, ...]] = [tuple(spec.block_shape or ()) for spec in self.specs]
        return shapes

    @property
    def rank(self) -> int:
        """Dimensions of all blocks together."""
        return sum(map(len, self.blocks))


def _only_pipeline(call: PallasCall, inputs: Sequence[Any], outputs: Sequence[Any]) -> _Pipeline | None:
    """The pipeline of a body that has just one, over whole arrays, each once, in blocks that divide them."""
    seen: list[_Pipeline | None] = []
    given: list[Any] = []

    def emit(
        _: Callable[..., None], *, grid: Sequence[Any], in_specs: Any = (), out_specs: Any = (), **options: Any
    ) -> Callable[..., None]:
        specs = (*sequence(in_specs), *sequence(out_specs))

        def run(*refs: Any, **more: Any) -> None:
            places = [at for ref in refs for at, other in enumerate(given) if ref is other]
            plain = not more and set(options) <= {"_explicit_indices"} and len(grid) == 1 and isinstance(grid[0], int)
            each_once = 0 < len(places) == len(refs) == len(set(places)) == len(specs)
            if not plain or not each_once or not all(map(_is_plain, specs, refs)):
                seen.append(None)
                return
            seen.append(_Pipeline(int(grid[0]), specs, tuple(places), tuple(ref.dtype for ref in refs)))

        return run

    def body(*refs: Any) -> None:
        given[:] = refs
        call.body(emit)(*refs)

    _body_of(body, call.grid, call.in_specs, call.out_specs, call.scratch, inputs, outputs)
    return seen[0] if len(seen) == 1 else None


def _is_plain(spec: pl.BlockSpec, ref: Any) -> bool:
    sizes = spec.block_shape or (None,)
    return all(isinstance(size, int) for size in sizes) and divides(spec, ref)


def _body_of(
    body: Callable[..., None],
    grid: tuple[int, ...],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Sequence[pl.BlockSpec],
    scratch: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:
    """The jaxpr of a body over references."""
    run = pl.pallas_call(
        body,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=list(out_specs),
        out_shape=[jax.ShapeDtypeStruct(output.shape, output.dtype) for output in outputs],
        scratch_shapes=list(scratch),
        interpret=True,
    )
    closed = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs))
    return next(e for e in closed.jaxpr.eqns if e.primitive.name == "pallas_call").params["jaxpr"]


def _marked(call: PallasCall, found: _Pipeline, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The jaxpr of the body with the pipeline's body in it.

    After the scratch come references to the pipeline's blocks, and one to numbers: before the pipeline's body the
    position of each block is stored there, and after it one number more, which says where it ends.
    """
    blocks = [pltpu.VMEM(block, dtype) for block, dtype in zip(found.blocks, found.dtypes, strict=True)]
    numbers = pltpu.SMEM((found.rank + 1,), jnp.int32)

    def body(*refs: Any) -> None:
        own, held, places = refs[: -1 - len(blocks)], refs[-1 - len(blocks) : -1], refs[-1]

        def emit(
            inner: Callable[..., None],
            *,
            in_specs: Any = (),
            out_specs: Any = (),
            _explicit_indices: bool = False,
            **_: Any,
        ) -> Callable[..., None]:
            def run(*_: Any) -> None:
                step = pl.program_id(len(call.grid))
                maps: list[Any] = [spec.index_map for spec in (*sequence(in_specs), *sequence(out_specs))]
                for at, index in enumerate(index for index_map in maps for index in index_map(step)):
                    places[at] = jnp.int32(index)
                inner(*([(step,)] if _explicit_indices else []), *held)
                places[found.rank] = jnp.int32(0)

            return run

        call.body(emit)(*own)

    widened = [_outer(spec) for spec in call.in_specs], [_outer(spec) for spec in call.out_specs]
    grid = (*call.grid, found.extent)
    return _body_of(body, grid, *widened, [*call.scratch, *blocks, numbers], inputs, outputs)


def _outer(spec: pl.BlockSpec) -> pl.BlockSpec:
    """A spec that does not know of the grid's last dimension."""
    index_map: Any = spec.index_map
    if index_map is None:
        return spec
    return pl.BlockSpec(
        spec.block_shape, lambda *ids: index_map(*ids[:-1]), memory_space=spec.memory_space,
        pipeline_mode=spec.pipeline_mode,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Equations of a body, as a function; ``evaluate`` takes it for a jaxpr.

    Attributes:
        invars: what it takes.
        eqns: its equations.
        outvars: what it gives.
    """

    invars: Sequence[Any]
    eqns: Sequence[Any]
    outvars: Sequence[Any]
    constvars: tuple[Any, ...] = ()

    def run(self, known: Mapping[Any, Any], ids: Sequence[Any], grid: Sequence[int]) -> list[Any]:
        """Its results in one step of a grid; ``known`` has what it takes."""

        def override(equation: Any, _: Sequence[Any]) -> list[Any] | None:
            if equation.primitive.name == "program_id":
                return [ids[equation.params["axis"]]]
            if equation.primitive.name == "num_programs":
                return [jnp.int32(grid[equation.params["axis"]])]
            return None

        return evaluate(self, (), [known[variable] for variable in self.invars], override)


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    """A marked body, taken apart. All but ``indices`` run on references.

    Attributes:
        refs: the body's references.
        indices: of a step of the whole grid, the position of each block of the pipeline.
        shared: what the rest needs of what comes before the pipeline.
        before: the rest of what comes before it.
        inside: the pipeline's body.
        after: what comes after it.
    """

    refs: Sequence[Any]
    indices: _Part
    shared: _Part
    before: _Part
    inside: _Part
    after: _Part

    @staticmethod
    def of(jaxpr: Any, found: _Pipeline, inputs: int) -> _Parts | None:
        """The parts; None if one would need what is not there in its step."""
        equations, places = list(jaxpr.eqns), jaxpr.invars[-1]
        marks = [at for at, e in enumerate(equations) if e.invars and e.invars[0] is places]
        if len(marks) != found.rank + 1 or jaxpr.constvars:
            return None
        *starts, last = marks
        before = [e for at, e in enumerate(equations[: starts[-1]]) if at not in starts]
        inside, after = equations[starts[-1] + 1 : last], equations[last + 1 :]
        positions = [equations[at].invars[1] for at in starts]  # a store has the value second
        arrays = {jaxpr.invars[at] for at in found.refs}
        asks = mentions(_Part((), inside, ()), STEP)  # of which grid, Pallas leaves open
        if asks or arrays & _taken([*before, *inside, *after]) or _made(inside) & _taken(after):
            return None
        needed = _behind(before, _variables(positions) | _taken([*inside, *after]))
        placed = _behind(before, _variables(positions))
        loads = set(jaxpr.invars[:inputs])
        if not all(_is_cheap(e, loads) for e in needed) or not all(_is_cheap(e, set()) for e in placed):
            return None
        shared = set(map(id, needed))
        rest = [equation for equation in before if id(equation) not in shared]
        known = [*jaxpr.invars, *_made(needed)]
        return _Parts(
            jaxpr.invars,
            _Part((), placed, positions),
            _Part(jaxpr.invars, needed, known),
            _Part(known, rest, ()),
            _Part(known, inside, ()),
            _Part(known, after, ()),
        )


def _variables(atoms: Iterable[Any]) -> set[Any]:
    return {atom for atom in atoms if not hasattr(atom, "val")}


def _taken(equations: Iterable[Any]) -> set[Any]:
    return {variable for equation in equations for variable in _variables(equation.invars)}


def _made(equations: Iterable[Any]) -> set[Any]:
    return {variable for equation in equations for variable in equation.outvars}


def _behind(equations: Sequence[Any], wanted: set[Any]) -> list[Any]:
    """The equations that some variables come from, in order."""
    kept: list[Any] = []
    wanted = set(wanted)
    for equation in reversed(equations):
        if wanted & set(equation.outvars):
            kept.append(equation)
            wanted |= _variables(equation.invars)
    return kept[::-1]


def _is_cheap(equation: Any, loads: set[Any]) -> bool:
    """Whether an equation may run in every step: no store, loads of some references alone, little arithmetic."""
    name = equation.primitive.name
    if name == "get":
        return equation.invars[0] in loads
    inner = compat.jaxprs_in(equation.params)
    return not equation.effects and name not in DEAR and not any(mentions(jaxpr, DEAR) for jaxpr in inner)


@dataclasses.dataclass(frozen=True, eq=False)
class _Flat:
    """The call with its pipeline in the grid."""

    old: PallasCall
    found: _Pipeline
    parts: _Parts

    def call(self) -> PallasCall:
        specs = [_outer(spec) for spec in (*self.old.in_specs, *self.old.out_specs)]
        for number, at in enumerate(self.found.refs):
            held = self.found.specs[number]
            specs[at] = pl.BlockSpec(
                held.block_shape, functools.partial(self._index, number), pipeline_mode=held.pipeline_mode
            )
        count = len(self.old.in_specs)
        return PallasCall(lambda _: self._body, self.grid, tuple(specs[:count]), tuple(specs[count:]), self.old.scratch)

    @property
    def grid(self) -> tuple[int, ...]:
        return (*self.old.grid, self.found.extent)

    def _index(self, number: int, *ids: Any) -> tuple[Any, ...]:
        """Where a block of the pipeline is in a step."""
        ranks = [len(block) for block in self.found.blocks]
        start = sum(ranks[:number])
        return tuple(self.parts.indices.run({}, ids, self.grid)[start : start + ranks[number]])

    def _body(self, *refs: Any) -> None:
        ids = [pl.program_id(axis) for axis in range(len(self.grid))]
        blocks = [refs[at] for at in self.found.refs]
        known = dict(zip(self.parts.refs, [*refs, *blocks, None], strict=True))
        known = dict(zip(self.parts.shared.outvars, self.parts.shared.run(known, ids, self.grid), strict=True))

        @pl.when(ids[-1] == 0)
        def _() -> None:
            self.parts.before.run(known, ids, self.grid)

        self.parts.inside.run(known, ids, self.grid)

        @pl.when(ids[-1] == self.found.extent - 1)
        def _() -> None:
            self.parts.after.run(known, ids, self.grid)
