"""Boxes are written as NumPy writes slices, and elements are not scattered one by one where they are many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpu_lowering.ir.boxes import Box
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.boxes import write_box


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    """A shape, and a box in it."""
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=1, max_size=3)))
    ranges: list[tuple[int, int, int]] = []
    for size in shape:
        start = draw(st.integers(0, size))
        ranges.append((start, draw(st.integers(start, size)), draw(st.integers(1, 4))))
    return shape, Box.of(ranges)


@settings(max_examples=60, deadline=None)
@given(boxes(), st.sampled_from(["float32", "int64", "bool", "complex64"]))
def test_a_box_is_written_as_a_slice(given: tuple[tuple[int, ...], Box], dtype: str) -> None:
    shape, box = given
    value = np.full(shape, np.nan if dtype == "float32" else 1).astype(dtype)
    part = (np.arange(np.prod(box.shape, dtype=int)).reshape(box.shape) % 2).astype(dtype)
    expected = value.copy()
    expected[box.slices()] = part
    with jax.enable_x64(True):
        got = write_box(jnp.asarray(value), jnp.asarray(part), box, out=TensorType.of(value))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize(("step", "scatters"), [(2, False), (3, False), (64, True)])
def test_few_elements_are_scattered(step: int, scatters: bool) -> None:
    box = Box.of([(0, 8, 1), (1, 512, step)])
    value, part = jnp.zeros((8, 512)), jnp.ones(box.shape)
    text = jax.jit(lambda x, y: write_box(x, y, box, out=TensorType.of(np.zeros((8, 512), "f")))).lower(value, part)
    assert ("scatter" in text.as_text()) is scatters
