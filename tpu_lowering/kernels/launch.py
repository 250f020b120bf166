"""One launch of a Helion device function, as a ``Kernel`` that runs as a plain ``pallas_call``.

Helion describes a launch by facts: which arguments are outputs, the block of each argument and the grid
dimensions that move it, which stay in HBM, scratch buffers, padding. They are enough to build the
``pallas_call``; Helion's own launchers are never called.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import errors
from tpu_lowering.analyse import pallas
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import Access, Execution, Kernel, Operand
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.kernels.flat_grids import PallasCall, flattened
from tpu_lowering.kernels.jax_function import first_line
from tpu_lowering.kernels.launch_facts import block_spec, moving_dimensions, scratch_types, vmem_limit
from tpu_lowering.kernels.pipelines import emit_pipeline, with_pipelines

# Facts that a plain pallas_call expresses, and those that only matter to Helion's own launchers.
EXPRESSED = frozenset((
    "_output_indices", "_inplace_indices", "_block_spec_info", "_scratch_shapes", "_hbm_arg_indices",
    "_ds_pad_dims", "_smem_arg_indices",
))  # fmt: skip
IRRELEVANT = frozenset((
    "_pallas_interpret", "_scratch_shape_sources", "_use_low_level_scheduler", "_matmul_dot_general",
    "_output_meta", "_cache_key",
))  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """A launch under another config.

    Attributes:
        label: what is other.
        make: makes it; raises where there is no such launch.
    """

    label: str
    make: Callable[[], Launch]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Launch(Kernel):
    """A launch, specialised to its shapes. Operands are the read-only tensors, then the outputs.

    Attributes:
        device_function: the function over references, in the order of the launch's arguments.
        grid: extents of the grid.
        positions: position among the launch's arguments of each operand.
        numbers: the other arguments, by position.
        blocks: block of each operand: (block shape, grid dimension of each dimension), None for whole.
        facts: Helion's other facts.
        flat: whether a pipeline inside the steps of the grid is a dimension of the grid instead, where it can be;
            see ``flat_grids``.
        variants: launches under other configs; none for a kernel that has a config of its own.
        fitted: what runs as plain JAX: the launch with blocks that end where their dimensions end; None if these do,
            or if it is not known to compute the same; see ``fitted_blocks``.
    """

    device_function: types.FunctionType
    grid: tuple[int, ...]
    positions: tuple[int, ...]
    numbers: tuple[tuple[int, Any], ...]
    blocks: tuple[Any, ...]
    facts: Mapping[str, Any]
    flat: bool = False
    variants: tuple[Variant, ...] = ()
    fitted: Launch | None = None

    @staticmethod
    def create(
        name: str,
        device_function: Any,
        grid: Sequence[Any],
        given: Sequence[Any],
        facts: Mapping[str, Any],
        tensors: Mapping[int, torch.Tensor],
        read_only: Sequence[int],
        outputs: Sequence[int],
        where: str,
        chip: Chip,
    ) -> Launch:
        """Builds a launch from what Helion's generated host code passes to its launcher.

        Raises:
            TpuLoweringError: TL210 for a launch that needs a launcher of Helion's own.
        """
        unknown = sorted(key for key, value in facts.items() if value and key not in EXPRESSED | IRRELEVANT)
        if unknown:
            raise errors.refuse(
                "TL210",
                name,
                f"expected a launch that a pallas_call can express, got one with {', '.join(unknown)}",
                "choose a config with pallas_loop_type='unroll' or 'fori_loop', and without distributed operations",
                where,
            )
        names = device_function.__code__.co_varnames[: device_function.__code__.co_argcount]
        order = [*read_only, *outputs]
        ranks = {position: rank for rank, position in enumerate(sorted(tensors))}
        info = facts.get("_block_spec_info")
        operands = tuple(
            Operand(names[p], TensorType.of(tensors[p]), outputs.index(p) if p in outputs else None) for p in order
        )
        return Launch(
            name=name,
            operands=operands,
            results=tuple(TensorType.of(tensors[p]) for p in outputs),
            where=where,
            chip=chip,
            device_function=device_function,
            grid=tuple(int(extent) for extent in grid),
            positions=tuple(order),
            numbers=tuple((p, value) for p, value in enumerate(given) if p not in tensors),
            blocks=tuple(None if not info else info[ranks[p]] for p in order),
            facts={**facts, "_smem": [p for p in order if ranks[p] in (facts.get("_smem_arg_indices") or ())]},
        )

    def allocates(self, result: int) -> bool:
        """Whether the launch itself makes the buffer of a result: Helion passes none to be written in place."""
        position = self.positions[len(self.positions) - len(self.results) + result]
        inplace = self.facts.get("_inplace_indices")
        return inplace is not None and position not in inplace

    def measure(self) -> tuple[Access, ...]:
        """Effects by the body of the form without aliases, checked against Helion's list of outputs."""
        if 0 in self.grid:
            none = Access(True, True, False, "the grid is empty: nothing is stored")
            return tuple(none if operand.result is not None else READ_ONLY for operand in self.operands)
        closed = self._traced
        equation = next(e for e in closed.jaxpr.eqns if e.primitive.name == "pallas_call")
        jaxprs.check_blocks(equation, self.name, self.where)
        effects = pallas.call_effects(equation)
        self._check_writes(effects)
        by_result = [
            Access(
                effect.reads,
                effect.writes,
                effect.covers and not effect.reads,
                effect.why or "every block is visited and stored whole",
            )
            for effect in effects.outputs
        ]
        return tuple(READ_ONLY if o.result is None else by_result[o.result] for o in self.operands)

    def calls(self) -> list[Any]:
        return [] if 0 in self.grid else jaxprs.kernel_calls(self._traced)

    def body(self) -> Any | None:
        """The jaxpr of the body in the form without aliases, if nothing stands around its ``pallas_call``.

        Its input variables are references: to the read-only operands, then to the outputs.
        """
        if 0 in self.grid:
            return None
        jaxpr = self._traced.jaxpr
        alone = len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name == "pallas_call"
        if not alone or jaxpr.eqns[0].invars != jaxpr.invars or jaxpr.eqns[0].outvars != jaxpr.outvars:
            return None
        return jaxpr.eqns[0].params["jaxpr"]

    @functools.cached_property
    def flattened(self) -> Launch | None:
        """The launch with ``flat``; None if that is no other form."""
        if self.flat or 0 in self.grid:
            return None
        values = [jaxprs.Fresh(o.type) if o.result is not None else jaxprs.spec_of(o.type) for o in self.operands]
        with jaxprs.kernel_scope([*(slot.type for slot in self.operands), *self.results], self.chip):
            found = _PallasCall(self, values).flat_form()
        return None if found is None else dataclasses.replace(self, flat=True, variants=(), fitted=None)

    @property
    def carried(self) -> int:
        """How many values the launch keeps in scratch memory."""
        return len(self.facts.get("_scratch_shapes") or ())

    @functools.cached_property
    def text(self) -> str:
        """What the launch does, as text that is equal for equal launches, in other processes too."""
        blocks = [block for call in self.calls() for block in call.params["grid_mapping"].block_mappings]
        maps = [str(block.index_map_jaxpr) for block in blocks]  # JAX's text of a call leaves them out
        return re.sub(r"0x[0-9a-f]+", "", "\n".join([str(self._traced.jaxpr), *maps]))

    @functools.cached_property
    def _traced(self) -> Any:
        """The jaxpr of the form without aliases.

        Raises:
            TpuLoweringError: TL206 if JAX cannot trace Helion's device code, or if an argument without
                elements has no blocks to give to an output with elements.
        """
        inputs = [operand for operand in self.operands if operand.result is None]
        for operand in inputs:
            if 0 in operand.type.shape and not all(0 in result.shape for result in self.results):
                raise errors.refuse(
                    "TL206",
                    f"argument '{operand.name}' of {self.name}",
                    f"expected an argument with elements, because an output has some, got {operand.type}",
                    "do not call the kernel where the argument has no elements",
                    self.where,
                )
        launch = dataclasses.replace(self, flat=False) if self.flat else self  # effects are measured without conditions
        try:
            return jaxprs.trace(launch._from_fresh, [operand.type for operand in inputs], self.results, self.chip)
        except Exception as error:
            raise errors.refuse(
                "TL206",
                self.name,
                f"expected device code that JAX can trace, got {type(error).__name__}: {first_line(error)}",
                "see JAX's message above; change the kernel, or its config, for these argument shapes",
                self.where,
            ) from error

    def _check_writes(self, effects: pallas.CallEffects) -> None:
        inputs = [operand for operand in self.operands if operand.result is None]
        for operand, effect in zip(inputs, effects.inputs, strict=True):
            if effect.writes:
                raise errors.refuse(
                    "TL204",
                    f"argument '{operand.name}' of {self.name}",
                    "expected stores only into the outputs that Helion lists, got a store into another argument",
                    "report this kernel: Helion's list of outputs and its device code disagree",
                    self.where,
                )

    def _from_fresh(self, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        fresh = [jaxprs.Fresh(operand.type) for operand in self.operands if operand.result is not None]
        return self._call([*inputs, *fresh], "interpret")

    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        values: list[Any] = []
        for slot, value, access in zip(self.operands, operands, self.access, strict=True):
            fresh = jaxprs.Fresh(slot.type)
            values.append(value if value is not None else fresh.materialise() if access.reads else fresh)
        if 0 in self.grid or all(0 in result.shape for result in self.results):
            return tuple(v.materialise() if isinstance(v, jaxprs.Fresh) else v for v in values[-len(self.results) :])
        with jaxprs.kernel_scope([*(slot.type for slot in self.operands), *self.results], self.chip):
            return (self.fitted or self if how == "vectorized" else self)._call(values, how)

    def _call(self, values: Sequence[Any], how: Execution) -> tuple[jax.Array, ...]:
        """The ``pallas_call``: outputs given as ``Fresh`` have no operand, others are aliased to theirs."""
        return _PallasCall(self, values).run(how)


READ_ONLY = Access(True, False, False, "Helion lists it as an input")


class _PallasCall:
    """Builds one ``pallas_call`` of a launch; shapes here are those after padding."""

    def __init__(self, launch: Launch, values: Sequence[Any]) -> None:
        self.launch = launch
        self.results = [at for at, operand in enumerate(launch.operands) if operand.result is not None]
        self.shapes = [self._padded_shape(at) for at in range(len(values))]
        self.inputs = [at for at, value in enumerate(values) if not isinstance(value, jaxprs.Fresh)]
        self.given = [values[at] for at in self.inputs]
        self.raw = {at for at, p in enumerate(launch.positions) if p in (launch.facts.get("_hbm_arg_indices") or ())}

    def _padding(self, at: int) -> list[tuple[int, int]]:
        """(dimension, amount) of the padding at the end that keeps dynamic slices in bounds."""
        shape = self.launch.operands[at].type.shape
        return [
            (dim, -shape[dim] % block + extra)
            for position, dim, block, extra in self.launch.facts.get("_ds_pad_dims") or ()
            if position == self.launch.positions[at]
        ]

    def _padded_shape(self, at: int) -> tuple[int, ...]:
        """Shape of the operand that the call gets; an output without elements gets one, as Pallas wants."""
        shape = list(self.launch.operands[at].type.shape)
        for dim, amount in self._padding(at):
            shape[dim] += amount
        return tuple(max(1, size) for size in shape) if at in self.results else tuple(shape)

    def _pad(self, at: int, value: jax.Array) -> jax.Array:
        widths = [(0, new - old) for new, old in zip(self.shapes[at], value.shape, strict=True)]
        return jnp.pad(value, widths) if any(after for _, after in widths) else value

    def _spec(self, at: int) -> pl.BlockSpec:
        if at in self.raw:
            return pl.BlockSpec(memory_space=pltpu.HBM)
        space = pltpu.SMEM if self.launch.positions[at] in self.launch.facts["_smem"] else None
        return block_spec(self.shapes[at], self.launch.blocks[at], space)

    def form(self) -> PallasCall:
        """The call as Helion's facts describe it."""
        function: Any = self.launch.device_function
        return PallasCall(
            lambda emit: functools.partial(self._body, with_pipelines(function, emit)),
            self.launch.grid or (1,),
            tuple(self._spec(at) for at in self.inputs),
            tuple(self._spec(at) for at in self.results),
            tuple(scratch_types(self.launch.facts.get("_scratch_shapes") or ())),
        )

    def flat_form(self) -> PallasCall | None:
        """The call with its pipeline in the grid, if it can be there; not where an output is aliased."""
        if any(at in self.inputs for at in self.results):
            return None
        inputs = [jaxprs.spec_of(self.launch.operands[at].type, self.shapes[at]) for at in self.inputs]
        return flattened(self.form(), inputs, self._outputs())

    def _outputs(self) -> list[jax.ShapeDtypeStruct]:
        return [jaxprs.spec_of(self.launch.operands[at].type, self.shapes[at]) for at in self.results]

    def run(self, how: Execution) -> tuple[jax.Array, ...]:
        aliases = {self.inputs.index(at): index for index, at in enumerate(self.results) if at in self.inputs}
        form = (self.flat_form() if self.launch.flat else None) or self.form()
        call = pl.pallas_call(
            form.body(emit_pipeline if how == "vectorized" else pltpu.emit_pipeline),
            grid=form.grid,
            in_specs=list(form.in_specs),
            out_specs=list(form.out_specs),
            out_shape=self._outputs(),
            scratch_shapes=list(form.scratch),
            input_output_aliases=aliases,
            interpret=how != "mosaic",
            compiler_params=vmem_limit() if how == "mosaic" else None,
            name=self.launch.name,
        )
        padded = [self._pad(at, value) for at, value in zip(self.inputs, self.given, strict=True)]
        results = jaxprs.launched(call, padded, how)
        return tuple(
            result[tuple(slice(0, size) for size in self.launch.operands[at].type.shape)]
            if self.shapes[at] != self.launch.operands[at].type.shape
            else result
            for at, result in zip(self.results, results, strict=True)
        )

    def _body(self, function: Callable[..., None], *refs: Any) -> None:
        """Calls the device function with references in the order of the launch's arguments.

        An aliased block starts as its old contents.
        """
        count, launch = len(self.inputs), self.launch
        by_position: dict[int, Any] = dict(launch.numbers)
        for at, ref in zip(self.inputs, refs[:count], strict=True):
            by_position[launch.positions[at]] = ref
        for at, ref in zip(self.results, refs[count : count + len(self.results)], strict=True):
            if at in self.inputs and at not in self.raw:
                self._load_old(at, ref, by_position[launch.positions[at]])
            by_position[launch.positions[at]] = ref
        function(*(by_position[p] for p in sorted(by_position)), *refs[count + len(self.results) :])

    def _load_old(self, at: int, ref: Any, old: Any) -> None:
        """Copies the old contents into the output block, once, the first time the grid visits it."""
        info = self.launch.blocks[at]
        moving = moving_dimensions(info) if info is not None else set()
        waiting = [axis for axis, extent in enumerate(self.launch.grid) if extent > 1 and axis not in moving]
        first = functools.reduce(jnp.logical_and, [pl.program_id(axis) == 0 for axis in waiting], jnp.bool_(True))

        @pl.when(first)
        def _() -> None:
            ref[...] = old[...]
