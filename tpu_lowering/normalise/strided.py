"""Strided views of dense memory as boxes: pure arithmetic on shapes, strides and offsets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tpu_lowering.ir.boxes import Box

Strided = tuple[list[int], list[int], int]


@dataclasses.dataclass(frozen=True)
class StridedBox:
    """A strided view of a dense row-major value, as a box, then a reshape, then a permutation.

    Attributes:
        box: the box of the base.
        kept: shape after dropping the box's dimensions of size 1 that the view does not have.
        permutation: order of ``kept``'s dimensions in the view.
    """

    box: Box
    kept: tuple[int, ...]
    permutation: tuple[int, ...]


def strided_box(base: Sequence[int], size: Sequence[int], stride: Sequence[int], offset: int) -> StridedBox | None:
    """Decodes ``as_strided`` of a dense row-major base; None where the view is no box of it.

    Each dimension of the view must walk along one dimension of the base, each along another; what is left
    of the offset places the box.
    """
    if 0 in base or 0 in size:
        return None
    dense = [math.prod(base[axis + 1 :]) for axis in range(len(base))]
    starts: list[int] = []
    for step, extent in zip(dense, base, strict=True):
        starts.append(min(offset // step, extent - 1))
        offset -= starts[-1] * step
    if offset:
        return None
    ranges = [(start, start + 1, 1) for start in starts]
    walked: dict[int, int] = {}
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        axis = _axis_of(dense, base, starts, walked, count, step)
        if count == 1:
            continue
        if axis is None:
            return None
        walked[axis] = dim
        ranges[axis] = (starts[axis], starts[axis] + (count - 1) * (step // dense[axis]) + 1, step // dense[axis])
    order = [walked[axis] for axis in sorted(walked)] + [dim for dim, count in enumerate(size) if count == 1]
    permutation = tuple(order.index(dim) for dim in range(len(size)))
    return StridedBox(Box.of(ranges), tuple(size[dim] for dim in order), permutation)


def _axis_of(
    dense: Sequence[int], base: Sequence[int], starts: Sequence[int], taken: dict[int, int], count: int, step: int
) -> int | None:
    """The base dimension that a view dimension of ``count`` elements, ``step`` apart, walks along."""
    for axis, unit in enumerate(dense):
        if axis in taken or step < unit or step % unit:
            continue
        if starts[axis] + (count - 1) * (step // unit) < base[axis]:
            return axis
    return None


def memory_shape(count: int, size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...] | None:
    """``count`` elements in row-major order as an array that has one dimension for each stride of a view.

    A view's own dimensions, where it is a ``view`` or a slice of one; None where the strides do not nest.
    """
    shape: list[int] = []
    for step in sorted({step for extent, step in zip(size, stride, strict=True) if extent > 1}, reverse=True):
        if step == 0 or count % step:
            return None
        shape.append(count // step)
        count = step
    return (*shape, count) if count > 1 else tuple(shape)


def memory_box(
    base: Sequence[int], size: Sequence[int], stride: Sequence[int], offset: int
) -> tuple[tuple[int, ...], StridedBox | None]:
    """A shape of a dense base's memory, and the view as a box of it: the base's own shape, or the view's."""
    own, views = tuple(base), memory_shape(math.prod(base), size, stride)
    box = strided_box(own, size, stride, offset)
    if box is not None or views is None:
        return own, box
    return views, strided_box(views, size, stride, offset)


def without_gaps(
    base: Sequence[int], steps: Sequence[int], size: list[int], stride: list[int], offset: int
) -> Strided | None:
    """Arguments of the same view where the base's strides ``steps`` are those of a dense base; None if there are none.

    Args:
        base: sizes of the base in storage order.
        steps: its strides, largest first.
        size, stride, offset: the view's, the offset relative to the base's first element.
    """
    if 0 in size:
        return size, stride, 0
    dense = [math.prod(base[axis + 1 :]) for axis in range(len(base))]
    if all(extent == 1 or step == unit for extent, step, unit in zip(base, steps, dense, strict=True)):
        last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        return (size, stride, offset) if offset >= 0 and last < math.prod(base) else None
    starts: list[int] = []
    for extent, step in zip(base, steps, strict=True):
        starts.append(0 if extent == 1 or step == 0 else min(offset // step, extent - 1))
        offset -= starts[-1] * step
    if offset or min(starts) < 0:
        return None
    walks = [extent if step else 1 for extent, step in zip(base, steps, strict=True)]
    new: list[int] = []
    taken: dict[int, int] = {}
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        axis = _axis_of([max(1, unit) for unit in steps], walks, starts, taken, count, step) if count > 1 else None
        if count > 1 and axis is None:
            return None
        if axis is not None:
            taken[axis] = dim
        new.append(step // steps[axis] * dense[axis] if axis is not None else 1)
    return size, new, sum(start * unit for start, unit in zip(starts, dense, strict=True))
