"""Operators that compute each element of other elements of its row, such as rotations and running sums: one table of
what kinds, kernels and counts of XLA's passes know of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from tpu_lowering import compat
from tpu_lowering.ir.rows import running_sum
from tpu_lowering.ir.types import TensorType

aten = compat.aten

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator, and what follows its first operand: positional arguments and keywords."""


@dataclasses.dataclass(frozen=True)
class Along:
    """What is known of an operator along rows.

    Attributes:
        dim: the one dimension that it goes along, given its arguments by name, its operand and its result; None if a
            kernel cannot compute it.
        in_kernel: what computes it on whole rows in a kernel, given its arguments, the axis of the rows, how many axes
            there are, and the result's element type.
        plain: the same in ATen's operators, for the form that XLA compiles.
        passes: the field of ``fuse.xla.heuristics.Heuristics`` that says how often XLA goes over the rows for it.
        near_lanes: whether a kernel computes it along the last two axes alone.
    """

    dim: Callable[[Mapping[str, Any], TensorType, TensorType], int | None]
    in_kernel: Callable[[Mapping[str, Any], int, int, torch.dtype], Call]
    plain: Callable[[Mapping[str, Any], int, int, torch.dtype], Call]
    passes: Literal["rotation_passes", "running_sum_passes"]
    near_lanes: bool = False


def _dim_of_roll(given: Mapping[str, Any], source: TensorType, result: TensorType) -> int | None:
    dims = [dim % len(source.shape) for dim in given["dims"]]
    return dims[0] if len(dims) == 1 else None


def _roll(given: Mapping[str, Any], at: int, rank: int, dtype: torch.dtype) -> Call:
    return aten.roll.default, (given["shifts"], [at]), {}


def _dim_of_sum(given: Mapping[str, Any], source: TensorType, result: TensorType) -> int | None:
    rank = len(source.shape)
    dim = given["dim"] % rank if rank else -1
    runs = rank > 0 and source.shape[dim] > 1
    return dim if runs and result.element.torch.is_floating_point else None


def _running_sum(given: Mapping[str, Any], at: int, rank: int, dtype: torch.dtype) -> Call:
    return running_sum, (at - rank, dtype), {}


def _cumsum(given: Mapping[str, Any], at: int, rank: int, dtype: torch.dtype) -> Call:
    return aten.cumsum.default, (at,), {"dtype": dtype}


ALONG: dict[Any, Along] = {
    aten.roll.default: Along(_dim_of_roll, _roll, _roll, "rotation_passes"),
    aten.cumsum.default: Along(_dim_of_sum, _running_sum, _cumsum, "running_sum_passes", near_lanes=True),
}
"""By operator. One that is not here is of no kind "along"."""
