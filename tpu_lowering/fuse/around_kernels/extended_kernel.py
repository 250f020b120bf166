"""A kernel with pointwise work before and after it, in the same ``pallas_call``.

A block of an operand is computed, at the start of each step, into a buffer in VMEM that the kernel reads in place of
the operand. A result is written into such a buffer, and the pointwise work takes it from there at the end of each step.
The buffer stays as it is until the block moves on, as a result's block does, so a kernel that adds to its result over
several steps may do so; what goes out last is of the finished block.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.extend.core
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import compat
from tpu_lowering.codegen import load
from tpu_lowering.fuse.around_kernels.chains import block_of
from tpu_lowering.fuse.xla.vmem_limits import LEAST, kernel_bytes
from tpu_lowering.ir.kernels import Access, Execution, Kernel
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.kernels.evaluation import evaluate

READ_ONLY = Access(True, False, False, "an operand of a kernel with pointwise work around it")


@dataclasses.dataclass(frozen=True)
class BlockWork:
    """Pointwise work on the blocks of one operand or result.

    Attributes:
        at: position of the block among the kernel's: operands, then results.
        text: source of the function; see ``chains.write``.
        name: of the function.
        takes: positions of what it takes among the new kernel's operands; -1 for the result's own block.
        gives: the type of what it makes, the whole array.
    """

    at: int
    text: str
    name: str
    takes: tuple[int, ...]
    gives: TensorType

    def function(self) -> Callable[..., Any]:
        return load.define(self.name, self.text)[self.name]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Extended(Kernel):
    """A kernel with work around it.

    Attributes:
        call: the ``pallas_call`` equation of the kernel itself.
        sources: for each operand of the new kernel, the block of ``call`` that it lies like.
        kept: for each block of ``call`` that is an operand, the new kernel's operand that it still is, or None.
        before: work on operands.
        after: work on results.
    """

    generated: ClassVar[bool] = True

    call: Any
    sources: tuple[int, ...]
    kept: tuple[int | None, ...]
    before: tuple[BlockWork, ...]
    after: tuple[BlockWork, ...]

    def measure(self) -> tuple[Access, ...]:
        return (READ_ONLY,) * len(self.operands)

    def calls(self) -> list[Any]:
        return [self.call]

    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        values = [value for value in operands if value is not None]
        with jaxprs.kernel_scope([slot.type for slot in self.operands], self.chip):
            return tuple(jaxprs.launched(functools.partial(self._launch, how), values, how))

    def _launch(self, how: Execution, *values: jax.Array) -> Sequence[jax.Array]:
        mapping = self.call.params["grid_mapping"]
        rank = {at: len(compat.blocked_array(block).shape) for at, block in enumerate(mapping.block_mappings)}
        shaped = [
            value.reshape((1,) * (rank[at] - value.ndim) + value.shape)
            for value, at in zip(values, self.sources, strict=True)
        ]
        results = {work.at: work.gives for work in self.after}
        count = mapping.num_inputs
        outputs = [compat.blocked_array(block) for block in mapping.block_mappings[count:]]
        staged = [work.at for work in (*self.before, *self.after)]
        scratch = [pltpu.VMEM(block_sizes(mapping.block_mappings[at]), self._staged_dtype(at)) for at in staged]
        return pl.pallas_call(
            functools.partial(self._body, mapping),
            grid=mapping.grid,
            in_specs=[spec(mapping.block_mappings[at], v.shape) for v, at in zip(shaped, self.sources, strict=True)],
            out_specs=[
                spec(block, out.shape) for block, out in zip(mapping.block_mappings[count:], outputs, strict=True)
            ],
            out_shape=[
                jax.ShapeDtypeStruct(out.shape, results[at].dtype if at in results else out.dtype)
                for at, out in enumerate(outputs, count)
            ],
            scratch_shapes=[*scratch, *(pltpu.VMEM(a.shape, a.dtype) for a in mapping.scratch_avals)],
            compiler_params=self._parameters(scratch) if how == "mosaic" else None,
            interpret=how != "mosaic",
            name=self.name,
        )(*shaped)

    def _parameters(self, staged: Sequence[Any]) -> Any:
        """The kernel's compiler parameters, without those that name operands one by one, and with VMEM for what is
        staged and the values that it is computed of."""
        given = self.call.params["compiler_params"]
        limit = compat.vmem_limit(given) or LEAST
        if added := sum(math.prod(one.shape) * one.dtype.itemsize for one in staged):
            most = max(limit, kernel_bytes(self.chip))
            given = compat.compiler_params(given, vmem_limit_bytes=min(limit + 3 * added, most))
        return dataclasses.replace(given, allow_input_fusion=None) if hasattr(given, "allow_input_fusion") else given

    def _staged_dtype(self, at: int) -> Any:
        return compat.blocked_array(self.call.params["grid_mapping"].block_mappings[at]).dtype

    def _body(self, mapping: Any, *refs: Any) -> None:
        taken, given = refs[: len(self.operands)], refs[len(self.operands) :][: mapping.num_outputs]
        rest = refs[len(self.operands) + mapping.num_outputs :]
        staged = dict(zip([work.at for work in (*self.before, *self.after)], rest, strict=False))
        for work in self.before:
            (staged[work.at][...],) = work.function()(*(taken[at][...] for at in work.takes))
        whole = {at: taken[kept] for at, kept in enumerate(self.kept) if kept is not None}
        inner = [staged.get(at, whole.get(at)) for at in range(len(self.kept))]
        inner += [staged.get(at, ref) for at, ref in enumerate(given, mapping.num_inputs)]
        evaluate(self.call.params["jaxpr"], (), [*inner, *rest[len(staged) :]], lambda equation, values: None)
        for work in self.after:
            values = [staged[work.at][...] if at < 0 else taken[at][...] for at in work.takes]
            (given[work.at - mapping.num_inputs][...],) = work.function()(*values)


def block_sizes(block: Any) -> tuple[int, ...]:
    """A block's shape, squeezed dimensions as 1."""
    return tuple(size or 1 for size in compat.blocked_sizes(block.block_shape))


def spec(block: Any, shape: Sequence[int]) -> pl.BlockSpec:
    """The ``BlockSpec`` of an array that lies like a block of a ``pallas_call``, or broadcasts to what does."""
    whole = compat.blocked_array(block).shape
    if not compat.is_pipelined(block):
        return pl.BlockSpec(memory_space=block.block_aval.memory_space)
    closed = block.index_map_jaxpr

    def index_map(*step: Any) -> tuple[Any, ...]:
        index = jax.extend.core.jaxpr_as_fun(closed)(*step)
        return tuple(0 if size == 1 else at for at, size in zip(index, shape, strict=True))

    if tuple(shape) == tuple(whole):
        return pl.BlockSpec(block.block_shape, index_map)
    return pl.BlockSpec(block_of(shape, block_sizes(block)), index_map)


def touchable(call: Any, at: int) -> bool:
    """Whether work can be done on a block: it comes to VMEM by itself, with all dimensions of its array."""
    mapping = call.params["grid_mapping"]
    block = mapping.block_mappings[at]
    try:
        sizes = compat.blocked_sizes(block.block_shape)
    except NotImplementedError:
        return False
    return None not in sizes and compat.is_pipelined(block)


def expressible(call: Any) -> bool:
    """Whether a ``pallas_call`` has nothing but a static grid, operands that come to VMEM in blocks or stay in HBM
    whole, and scratch memory in VMEM."""
    mapping = call.params["grid_mapping"]
    plain = not mapping.num_index_operands and all(isinstance(extent, int) for extent in mapping.grid)
    plain = plain and all(
        compat.is_pipelined(block) or compat.is_left_in_hbm(block) for block in mapping.block_mappings
    )
    scratch = all(str(getattr(aval, "memory_space", "")) == "vmem" for aval in mapping.scratch_avals)
    return plain and scratch and not call.params["input_output_aliases"] and bool(mapping.grid)
