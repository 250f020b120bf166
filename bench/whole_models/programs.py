"""Both sides of a case, compiled for a chip."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.extend import core

from bench.programs import NO_SOURCE, specs_of
from bench.whole_models.case import Built, Case, flat
from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.kernels import jaxprs
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.runtime.aot.capture import Captured
from tpu_lowering.runtime.aot.program import EntryOperation, TpuProgram

COPIES = ("copy", "copy-start", "transpose")


@dataclasses.dataclass(frozen=True)
class Side:
    """What was compiled for one side of a case: a forward, or a forward and a backward.

    Attributes:
        programs: in order.
        seconds: until they were there.
    """

    programs: tuple[TpuProgram, ...]
    seconds: float

    @property
    def hbm_bytes(self) -> int:
        return sum(program.hbm_bytes for program in self.programs)

    @property
    def peak_bytes(self) -> int:
        return max(program.peak_bytes for program in self.programs)

    @property
    def copied_bytes(self) -> int:
        """What is moved by operations that only lay arrays out again."""
        moved = (operation for program in self.programs for operation in program.entry_operations)
        return sum(o.hbm_bytes_read + o.hbm_bytes_written for o in moved if o.opcode in COPIES)

    def largest(self, count: int) -> list[tuple[int, EntryOperation]]:
        """The operations that move most bytes, with the number of their program."""
        every = [(at, o) for at, program in enumerate(self.programs) for o in program.entry_operations]
        return sorted(every, key=lambda one: -(one[1].hbm_bytes_read + one[1].hbm_bytes_written))[:count]


def ours(case: Case, built: Built, target: str) -> Side:
    """The programs of our backend, those with generated kernels or those without, whichever move fewer bytes.

    As ``aot_compile`` makes them, but for the kernels' schedules: a twin's bytes are by operands too.

    Raises:
        TpuLoweringError: what the form without kernels is refused for.
    """
    began, chip = time.monotonic(), chips.find(target)

    def capturing(options: Mapping[str, Any]) -> list[Captured]:
        given = (built.function, built.inputs, {}, chip, options, ())
        return aot.capture_step(*given) if case.trains else [aot.capture(*given)]

    programs = aot.compile_best(capturing, chip, {}, True, simulate=False).programs
    return Side(programs, time.monotonic() - began)


def twin(case: Case, built: Built, target: str) -> Side:
    """The programs of the twin."""
    began = time.monotonic()
    chip = chips.find(target)
    held = built.weights()
    weights = dict(zip(held, specs_of(list(held.values())), strict=True))
    given = [narrow(one) for one in specs_of((*built.inputs, *built.caches))]
    given += [jax.ShapeDtypeStruct((2,), jnp.uint32)] * built.draws
    with jaxprs.kernel_scope([], chip):
        if case.trains:
            parts = step_of(built.twin, weights, built.trained(), given)
        else:
            leaves, tree = jax.tree.flatten((weights, given))

            def function(*leaves: jax.Array) -> Any:
                weights, given = jax.tree.unflatten(tree, leaves)
                return tuple(flat(built.twin(weights, *given)))

            end = len(leaves) - built.draws
            parts = [Part(function, leaves, tuple(range(end - len(built.caches), end)))]
        programs = tuple(part.compiled(chip) for part in parts)
    return Side(programs, time.monotonic() - began)


def narrow(spec: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Whole numbers of 32 bits, as JAX has them."""
    return jax.ShapeDtypeStruct(spec.shape, jnp.int32) if spec.dtype == jnp.int64 else spec


@dataclasses.dataclass(frozen=True)
class Part:
    """One program of a twin: a function of arrays, what they are like, and which are donated."""

    function: Callable[..., Any]
    given: Sequence[jax.ShapeDtypeStruct]
    donated: tuple[int, ...] = ()

    def compiled(self, chip: Chip) -> TpuProgram:
        exported = jax.export.export(jax.jit(self.function, keep_unused=False), platforms=["tpu"])(*self.given)
        artifact = bytes(exported.serialize())
        compiled = compiler.compile_artifact(artifact, chip, self.donated, NO_SOURCE, False)
        return TpuProgram.of("by_hand", chip, compiled, artifact)


def step_of(
    loss: Callable[..., jax.Array], weights: dict[str, Any], trained: Sequence[str], given: Sequence[Any]
) -> list[Part]:
    """The forward and the backward of a loss, as ``jax.vjp`` parts them. What the backward reads of the arguments is
    given to it again, and is no result of the forward."""
    names = list(weights)

    def both(*leaves: Any) -> Any:
        held = dict(zip(names, leaves, strict=False))
        value, pull = jax.vjp(lambda own: loss({**held, **own}, *leaves[len(names) :]), {n: held[n] for n in trained})
        saved, structure = jax.tree.flatten(pull)
        structures.append(structure)
        return (value, *saved)

    structures: list[Any] = []
    leaves = [*weights.values(), *given]
    closed = jax.make_jaxpr(both)(*leaves)
    places = {variable: at for at, variable in enumerate(closed.jaxpr.invars)}
    results = closed.jaxpr.outvars
    new = [at for at, result in enumerate(results) if at and not _is_known(result, places)]
    again = sorted({places[result] for result in results[1:] if isinstance(result, core.Var) and result in places})
    kept = closed.jaxpr.replace(outvars=[results[0], *(results[at] for at in new)], debug_info=None)

    def forward(*leaves: Any) -> Any:
        return core.jaxpr_as_fun(core.ClosedJaxpr(kept, closed.consts))(*leaves)

    def backward(gradient: Any, *arrays: Any) -> Any:
        arguments = dict(zip(again, arrays, strict=False))
        computed = dict(zip(new, arrays[len(again) :], strict=True))
        saved = [
            computed[at]
            if at in computed
            else arguments[places[result]]
            if isinstance(result, core.Var)
            else jnp.asarray(result.val, result.aval.dtype)
            for at, result in enumerate(results)
            if at
        ]
        gradients = jax.tree.unflatten(structures[0], saved)(gradient)[0]
        return tuple(gradients[name] for name in trained)

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in (results[at] for at in new)]
    one = jax.ShapeDtypeStruct((), jnp.float32)
    return [Part(forward, leaves), Part(backward, [one, *(leaves[at] for at in again), *shapes])]


def _is_known(result: Any, places: dict[Any, int]) -> bool:
    return not isinstance(result, core.Var) or result in places
