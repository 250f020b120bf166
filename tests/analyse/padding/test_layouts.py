"""Layouts of padded dimensions: what flattening and taking apart makes of them, and what must not be mixed."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ir.reshapes import Shape, reshapes
from tpu_lowering.analyse.padding.layouts import Inexact, PaddedDim, Sizes, Undecided

s, t = sympy.symbols("s t", integer=True, positive=True)


def factors(layout: tuple[PaddedDim, ...]) -> list[tuple[object, ...]]:
    return [dim.factors or () for dim in layout]


def test_flattening_keeps_the_order_of_factors() -> None:
    sizes = Sizes([s])
    batch, length, depth = map(sizes.plain, (4, s, 6))
    assert factors(sizes.regroup((batch, length, depth), [4 * s, 6])) == [(4, s), (6,)]
    assert factors(sizes.regroup((length, batch, depth), [4 * s, 2, 3])) == [(s, 4), (2,), (3,)]
    assert factors(sizes.regroup((batch, length, depth), [24 * s])) == [(4, s, 6)]
    assert factors(sizes.regroup((PaddedDim(4 * s, (4, s)), depth), [2, 2, s, 2, 3])) == [(2,), (2,), (s,), (2,), (3,)]


def valid(layout: tuple[PaddedDim, ...], size: int, rounded: int) -> np.ndarray:
    """Which elements of a value are valid where the dynamic size is rounded up, row by row."""
    found = np.ones((), bool)
    for factor in (sympy.sympify(factor) for dim in layout for factor in dim.factors or ()):
        row = np.arange(int(factor.subs(s, rounded))) < int(factor.subs(s, size))
        found = found[..., None] & row
    return found.ravel()


@given(reshapes(), st.data())
@example(((2, 3), (3, 2)), None)
def test_valid_elements_are_where_the_reshaped_layout_says(
    shapes: tuple[Shape, Shape], data: st.DataObject | None
) -> None:
    before, after = ([sympy.Integer(size) for size in shape] for shape in shapes)
    if data is not None:
        for sizes in (before, after):
            sizes.insert(data.draw(st.integers(0, len(sizes))), s)
    layouts = Sizes([s])
    layout = tuple(map(layouts.plain, before))
    try:
        found = layouts.regroup(layout, after)
    except Inexact:
        assert data is not None or 0 in shapes[0]
        return
    assert [dim.size for dim in found] == after
    assert np.array_equal(valid(found, 3, 5), valid(layout, 3, 5))
    for dim in found:
        assert sympy.expand(sympy.prod(dim.factors or ()) - dim.size) == 0


@given(reshapes())
def test_every_reshape_that_leaves_padded_dimensions_whole_has_a_layout(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    layouts = Sizes([s])
    layout = tuple(map(layouts.plain, (*before, s, *before)))
    if 0 not in before:
        found = layouts.regroup(layout, (*after, s, *after))
        assert [dim.size for dim in found] == [*after, s, *after]


def test_a_padded_dimension_stays_whole() -> None:
    sizes = Sizes([s])
    with pytest.raises(Inexact, match="expected a dimension to stay whole, got s reshaped to 2"):
        sizes.regroup((sizes.plain(s), sizes.plain(4)), [2, 2 * s])
    assert factors(Sizes([]).regroup((sizes.plain(t),), [t])) == [(t,)]


def test_layouts_that_differ_do_not_meet() -> None:
    sizes = Sizes([s])
    with pytest.raises(Inexact, match=r"expected one layout, got \[4, s\] and \[s, 4\]"):
        sizes.unify(PaddedDim(4 * s, (4, s)), PaddedDim(4 * s, (s, 4)))
    with pytest.raises(Inexact, match=r"expected one layout, got \[4, s\] and \[4\*s\]"):
        sizes.unify(PaddedDim(4 * s, (4, s)), sizes.plain(4 * s))
    assert sizes.unify(sizes.loose(4 * s), PaddedDim(4 * s, (s, 4))).factors == (s, 4)


def test_a_flattened_input_takes_the_layout_that_it_meets() -> None:
    sizes = Sizes([s])
    saved = sizes.of_input(4 * s, "saved.0")
    with pytest.raises(Undecided):
        sizes.factors(saved)
    sizes.unify(saved, PaddedDim(4 * s, (s, 4)))
    assert sizes.factors(saved) == (s, 4)
    taken_apart = sizes.of_input(4 * s - 4, "other.0")
    sizes.regroup((taken_apart,), [s - 1, 4])
    assert sizes.factors(taken_apart) == (s - 1, 4)


def test_sizes_that_cannot_be_padded() -> None:
    sizes = Sizes([s, t])
    for size in (s * t, s + t, s**2, -s + 9, sympy.floor(s / 2)):
        with pytest.raises(Inexact, match="expected a size that grows with one dynamic size, got "):
            sizes.plain(size)
    assert [sizes.plain(size).factors for size in (s, s - 3, 2 * s + 1)] == [(s,), (s - 3,), (2 * s + 1,)]
    assert sizes.usual(4 * s * t) == (4, s, t)
