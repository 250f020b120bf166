"""Layouts of padded dimensions: what flattening and taking apart makes of them, and what must not be mixed."""

from __future__ import annotations

import pytest
import sympy

from tpu_lowering.analyse.padding.layouts import Dim, Inexact, Sizes, Undecided

s, t = sympy.symbols("s t", integer=True, positive=True)


def factors(layout: tuple[Dim, ...]) -> list[tuple[object, ...]]:
    return [dim.factors or () for dim in layout]


def test_flattening_keeps_the_order_of_factors() -> None:
    sizes = Sizes([s])
    batch, length, depth = map(sizes.plain, (4, s, 6))
    assert factors(sizes.regroup((batch, length, depth), [4 * s, 6])) == [(4, s), (6,)]
    assert factors(sizes.regroup((length, batch, depth), [4 * s, 2, 3])) == [(s, 4), (2,), (3,)]
    assert factors(sizes.regroup((batch, length, depth), [24 * s])) == [(4, s, 6)]
    assert factors(sizes.regroup((Dim(4 * s, (4, s)), depth), [2, 2, s, 2, 3])) == [(2,), (2,), (s,), (2,), (3,)]


def test_a_padded_dimension_stays_whole() -> None:
    sizes = Sizes([s])
    with pytest.raises(Inexact, match="expected a dimension to stay whole, got s reshaped to 2"):
        sizes.regroup((sizes.plain(s), sizes.plain(4)), [2, 2 * s])
    assert factors(Sizes([]).regroup((sizes.plain(t),), [t])) == [(t,)]


def test_layouts_that_differ_do_not_meet() -> None:
    sizes = Sizes([s])
    with pytest.raises(Inexact, match=r"expected one layout, got \[4, s\] and \[s, 4\]"):
        sizes.unify(Dim(4 * s, (4, s)), Dim(4 * s, (s, 4)))
    with pytest.raises(Inexact, match=r"expected one layout, got \[4, s\] and \[4\*s\]"):
        sizes.unify(Dim(4 * s, (4, s)), sizes.plain(4 * s))
    assert sizes.unify(sizes.loose(4 * s), Dim(4 * s, (s, 4))).factors == (s, 4)


def test_a_flattened_input_takes_the_layout_that_it_meets() -> None:
    sizes = Sizes([s])
    saved = sizes.of_input(4 * s, "saved.0")
    with pytest.raises(Undecided):
        sizes.factors(saved)
    sizes.unify(saved, Dim(4 * s, (s, 4)))
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
