"""Boxes agree with NumPy's slicing, whatever the ranges."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from tpu_lowering.ir.boxes import Box, box

SHAPE = (7, 5)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...] = SHAPE) -> Box:
    def one(size: int) -> tuple[int, int, int]:
        start = draw(st.integers(0, size))
        return (start, draw(st.integers(start, size)), draw(st.integers(1, 4)))

    return Box.of([one(size) for size in shape])


def elements(value: Box, shape: tuple[int, ...] = SHAPE) -> set[int]:
    return set(np.arange(np.prod(shape)).reshape(shape)[value.slices()].ravel().tolist())


@given(boxes())
def test_shape_is_that_of_the_slice(value: Box) -> None:
    assert value.shape == np.empty(SHAPE)[value.slices()].shape


@given(boxes())
def test_text_round_trips(value: Box) -> None:
    assert eval(repr(value), {"box": box}) == value


@given(boxes(), boxes())
def test_disjoint_and_contains(a: Box, b: Box) -> None:
    assert a.is_disjoint(b) == (not elements(a) & elements(b))
    assert a.contains(b) == (elements(b) <= elements(a))


@given(st.data(), boxes())
def test_within_and_relative_are_inverse(data: st.DataObject, outer: Box) -> None:
    inner = data.draw(boxes(outer.shape))
    combined = outer.within(inner)
    whole = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    np.testing.assert_array_equal(whole[outer.slices()][inner.slices()], whole[combined.slices()])
    if 0 not in inner.shape:
        assert outer.relative(combined) == inner
