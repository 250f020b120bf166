"""A pointwise Helion launch over flat arrays, as a kernel over the arrays as they were before they were flattened.

An array of two dimensions and its flat form lie differently in a TPU's memory, so ``x.view(-1)`` before a kernel is
a copy of ``x``. A kernel that computes each element from the same elements of its operands does not need it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from tpu_lowering.analyse.pointwise import is_pointwise
from tpu_lowering.ir.kernels import Access, Execution, Kernel
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.kernels.evaluation import evaluate
from tpu_lowering.kernels.launch import READ_ONLY, Launch
from tpu_lowering.kernels.launch_facts import vmem_limit
from tpu_lowering.session import kept

ROWS = 32  # a multiple of every element type's tile of rows, so that collapsed dimensions of rows lie as before
COLUMNS = 1024  # of a block
BLOCK_BYTES = 2 << 20  # of one block of every operand together; the pipeline holds two of each
BLOCK_ELEMENTS = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pointwise(Kernel):
    """A pointwise launch over arrays of one shape. Operands are as the launch's.

    Attributes:
        body: jaxpr of the launch's body, over references to blocks of one dimension.
    """

    body: Any

    def measure(self) -> tuple[Access, ...]:
        fresh = Access(False, True, True, "every block is visited and stored whole")
        return tuple(READ_ONLY if operand.result is None else fresh for operand in self.operands)

    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        inputs = [value for slot, value in zip(self.operands, operands, strict=True) if slot.result is None]
        with jaxprs.kernel_scope([*(slot.type for slot in self.operands)], self.chip):
            return self._call([value for value in inputs if value is not None], how)

    def _call(self, inputs: Sequence[jax.Array], how: Execution) -> tuple[jax.Array, ...]:
        shape = self.results[0].shape
        rows, columns = math.prod(shape[:-1]), shape[-1]
        block = block_shape(rows, columns, [slot.type for slot in self.operands])
        spec = pl.BlockSpec(block, lambda row, column: (row, column))
        call = pl.pallas_call(
            self._body,
            grid=(-(-rows // block[0]), -(-columns // block[1])),
            in_specs=[spec] * len(inputs),
            out_specs=[spec] * len(self.results),
            out_shape=[jax.ShapeDtypeStruct((rows, columns), result.dtype) for result in self.results],
            interpret=how != "mosaic",
            compiler_params=vmem_limit() if how == "mosaic" else None,
            name=self.name,
        )
        results = jaxprs.launched(call, [value.reshape(rows, columns) for value in inputs], how)
        return tuple(result.reshape(shape) for result in results)

    def _body(self, *refs: Any) -> None:
        """The launch's body over blocks of two dimensions."""

        def override(equation: Any, values: Sequence[Any]) -> list[Any] | None:
            match equation.primitive.name:
                case "get":
                    return [values[0][...]]
                case "swap":
                    values[0][...] = values[1]
                    return [None]
                case "broadcast_in_dim":
                    return [jnp.broadcast_to(values[0], refs[0].shape if equation.outvars[0].aval.shape else ())]
                case _:
                    return None

        evaluate(self.body, (), refs, override)


def block_shape(rows: int, columns: int, types: Sequence[TensorType]) -> tuple[int, int]:
    """A block of a few MiB: at most ``COLUMNS`` wide, and a multiple of ``ROWS`` high, or as high as the array."""
    width = min(columns, COLUMNS)
    elements = min(BLOCK_ELEMENTS, BLOCK_BYTES // sum(type_.dtype.itemsize for type_ in types))
    height = max(ROWS, elements // width // ROWS * ROWS)
    return min(rows, height), width


def is_collapsible(shape: Sequence[int]) -> bool:
    """Whether an array lies in a TPU's memory as its form of two dimensions does, with all rows in one dimension."""
    return 0 not in shape and (len(shape) == 2 or (len(shape) > 2 and shape[-2] % ROWS == 0))


@kept(256, "the body is evaluated to find its form; kernels compare by identity")
def unflattened(launch: Launch, shape: tuple[int, ...]) -> Pointwise | None:
    """The kernel over arrays of a shape that does what a launch does over their flat forms; None if there is none."""
    flat = (math.prod(shape),)
    if not is_collapsible(shape) or any(operand.type.shape != flat for operand in launch.operands):
        return None
    if any(launch.facts.get(fact) for fact in ("_scratch_shapes", "_hbm_arg_indices", "_ds_pad_dims", "_smem")):
        return None
    if len({repr(block) for block in launch.blocks}) != 1 or not all(_overwrites(launch)):
        return None
    body = launch.body()
    inputs = sum(operand.result is None for operand in launch.operands)
    if body is None or not is_pointwise(body, inputs):
        return None
    operands = tuple(
        dataclasses.replace(operand, type=dataclasses.replace(operand.type, shape=shape)) for operand in launch.operands
    )
    results = tuple(dataclasses.replace(result, shape=shape) for result in launch.results)
    return Pointwise(launch.name, operands, results, launch.where, launch.chip, body)


def _overwrites(launch: Launch) -> list[bool]:
    return [a.covers for operand, a in zip(launch.operands, launch.access, strict=True) if operand.result is not None]
