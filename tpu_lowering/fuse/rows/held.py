"""Bytes of VMEM that a generated kernel holds at most."""

from __future__ import annotations

import functools
import math
from typing import Any

from tpu_lowering import compat
from tpu_lowering.codegen import load
from tpu_lowering.fuse.rows.tiles import BUFFERS
from tpu_lowering.ir.chips import LANES, SUBLANES, Chip
from tpu_lowering.ir.jaxprs import is_literal
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.session import kept

LANE_BYTES = 4  # a narrower number takes them where it is computed with


@kept(256, "a kernel's source is traced to see what it holds: models have the same one in every layer")
def held_bytes(name: str, text: str, operands: tuple[TensorType, ...], chip: Chip) -> int:
    """Bytes of every block, as often as it lies there, and of the most values of the body that are alive at once.

    Args:
        name: of the kernel.
        text: its source; ``<name>_launch`` is one ``pallas_call`` whose operands and results are blocks in VMEM.
        operands: types of its operands.
        chip: whose facts the kernel sees.
    """
    launch = functools.partial(load.define(name, text)[f"{name}_launch"], interpret=False)
    (call,) = jaxprs.kernel_calls(jaxprs.trace(launch, operands, chip=chip))
    mapping, body = call.params["grid_mapping"], call.params["jaxpr"]
    blocks = zip(mapping.block_mappings, body.invars, strict=True)
    return sum(_buffers(block) * _bytes(ref.aval) for block, ref in blocks) + _most_alive(body)


def _most_alive(jaxpr: Any) -> int:
    """Bytes of the values that are alive at once, computing in order; what references hold is not counted."""
    alive = {atom for atom in jaxpr.outvars if not is_literal(atom)}
    most = 0
    for equation in reversed(jaxpr.eqns):
        alive.update(equation.outvars, (atom for atom in equation.invars if not is_literal(atom)))
        inside = max(map(_most_alive, compat.jaxprs_in(equation.params)), default=0)
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
    rows, columns = math.ceil(rows / SUBLANES) * SUBLANES, math.ceil(columns / LANES) * LANES
    return math.prod(outer) * rows * columns * max(least, aval.dtype.itemsize)
