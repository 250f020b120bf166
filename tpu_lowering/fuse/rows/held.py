"""Bytes of VMEM that a generated kernel holds at most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from tpu_lowering import compat
from tpu_lowering.fuse.rows.tiles import BUFFERS, COLUMNS
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs

LANE_BYTES = 4  # a narrower number takes them where it is computed with
SUBLANES = 8


def held_bytes(launch: Callable[..., Any], operands: Sequence[TensorType], chip: Chip) -> int:
    """Bytes of every block, as often as it lies there, and of the most values of the body that are alive at once.

    Args:
        launch: one ``pallas_call`` whose operands and results are all blocks in VMEM.
        operands: its operands.
        chip: whose facts the kernel sees.
    """
    with jaxprs.kernel_scope(operands, chip):
        traced = jax.make_jaxpr(launch)(*map(jaxprs.spec_of, operands))
    (call,) = jaxprs.kernel_calls(traced)
    mapping, body = call.params["grid_mapping"], call.params["jaxpr"]
    blocks = zip(mapping.block_mappings, body.invars, strict=True)
    return sum(_buffers(block) * _bytes(ref.aval) for block, ref in blocks) + most_alive(body)


def most_alive(jaxpr: Any) -> int:
    """Bytes of the values that are alive at once, computing in order; what references hold is not counted."""
    alive = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    most = 0
    for equation in reversed(jaxpr.eqns):
        alive.update(equation.outvars, (atom for atom in equation.invars if not hasattr(atom, "val")))
        inside = max(map(most_alive, compat.jaxprs_in(equation.params)), default=0)
        most = max(most, inside + sum(_bytes(variable.aval, LANE_BYTES) for variable in alive if _is_value(variable)))
        alive.difference_update(equation.outvars)
    return most


def _buffers(block: Any) -> int:
    return BUFFERS if block.pipeline_mode is None else block.pipeline_mode.buffer_count


def _is_value(variable: Any) -> bool:
    return not hasattr(variable.aval, "inner_aval")


def _bytes(aval: Any, least: int = 1) -> int:
    """Bytes of an array in VMEM, where the last two dimensions are padded to tiles."""
    *outer, rows, columns = (1, 1, *aval.shape)
    rows, columns = math.ceil(rows / SUBLANES) * SUBLANES, math.ceil(columns / COLUMNS) * COLUMNS
    return math.prod(outer) * rows * columns * max(least, aval.dtype.itemsize)
