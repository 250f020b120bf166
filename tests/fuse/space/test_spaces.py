"""Accesses of reshaped values, against NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given

from tests.ir.reshapes import Shape, only_splits_and_joins, reshaped, reshapes
from tpu_lowering.fuse.space.spaces import AccessMap, Space, split


def elements(space: Space, access: AccessMap) -> np.ndarray:
    """Which point of a space, counted row by row, lies where in a value with an access."""
    order = space.order()
    points = np.arange(math.prod(space.sizes.values())).reshape(list(space.sizes.values()))
    assert sorted(dim for run in access for dim in run) == sorted(order)
    moved = points.transpose([order.index(dim) for run in access for dim in run])
    return moved.reshape([space.size(run) for run in access])


@given(reshapes())
@example(((2, 6, 5), (12, 5)))
@example(((0, 5), (5, 0)))
@example(((5, 0), (3, 0)))
def test_access_of_a_reshaped_value(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    space, access = Space.of(before)
    found = space.regrouped(access, after)
    assert (found is not None) == only_splits_and_joins(before, after)
    if found is not None:
        assert np.array_equal(elements(space, found[0]), reshaped(before, after))
        assert np.array_equal(elements(space, split(access, found[1])), reshaped(before, before))
    else:
        assert access == space.completed(access, before)


@pytest.mark.parametrize(
    ("shape", "first", "second", "splits"),
    [
        ((2, 6, 5), (2, 3, 10), (2, 6, 5), 1),
        ((2, 6, 5), (12, 5), (3, 4, 5), None),
        ((12, 5), (3, 4, 5), (3, 2, 2, 5), 2),
        ((4, 9), (6, 6), (4, 9), None),
    ],
)
def test_reshapes_split_dimensions(
    shape: Sequence[int], first: Sequence[int], second: Sequence[int], splits: int | None
) -> None:
    space, access = Space.of(shape)
    found = space.regrouped(access, first)
    found = None if found is None else space.regrouped(found[0], second)
    assert (found is None) == (splits is None)
    if found is not None and splits is not None:
        assert len(space.sizes) == len(shape) + splits
        assert [space.size(run) for run in found[0]] == list(second)
