"""Random reshapes, and what NumPy says of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from tpu_lowering.ir.reshapes import Digit

Shape = tuple[int, ...]


def _split(draw: st.DrawFn, size: int) -> list[int]:
    """Sizes whose product is a size, ones among them."""
    sizes: list[int] = []
    while size > 1 and draw(st.booleans()):
        sizes.append(draw(st.sampled_from([part for part in range(1, size + 1) if size % part == 0])))
        size //= sizes[-1]
    return [*sizes, size] if size > 1 or draw(st.booleans()) else sizes


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Two shapes of as many elements: unrelated, or neighbours of one joined and split in the other."""
    before = draw(st.lists(st.sampled_from([0, 1, 1, 2, 2, 3, 4, 6, 12]), max_size=5))
    if draw(st.booleans()):
        after = _split(draw, math.prod(before)) if 0 not in before else draw(st.permutations(before))
    else:
        after, at = list[int](), 0
        while at < len(before):
            step = draw(st.integers(1, len(before) - at))
            joined = math.prod(before[at : at + step])
            after += [joined] if joined == 0 else _split(draw, joined)
            at += step
    return tuple(before), tuple(after)


def positions(before: Sequence[int], groups: Sequence[Sequence[Digit]]) -> np.ndarray:
    """Which element of a row-major value of one shape lies where in the value that digits describe."""
    steps = [math.prod(before[axis + 1 :]) for axis in range(len(before))]
    found = np.zeros((), np.int64)
    for digit in (digit for group in groups for digit in group):
        found = found[..., None] + np.arange(digit.size) * digit.stride * steps[digit.axis]
    return found.reshape([math.prod(digit.size for digit in group) for group in groups])


def reshaped(before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """The same, by NumPy."""
    return np.arange(math.prod(before)).reshape(before).reshape(after)


def only_splits_and_joins(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether of any two ends of dimensions, of either shape, one lies at whole steps of the other."""
    ends = {math.prod(shape[at:]) for shape in (before, after) for at in range(len(shape) + 1)}
    ordered = sorted(ends)
    return ordered[0] != 0 and all(b % a == 0 for a, b in itertools.pairwise(ordered))
