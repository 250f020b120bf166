"""How reshapes split and join dimensions, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given

from tests.ir.reshapes import Shape, only_splits_and_joins, positions, reshaped, reshapes
from tpu_lowering.ir.reshapes import Digit, NotWhole, digits_of


@given(reshapes())
@example(((4, 6, 5), (4, 2, 15)))
@example(((12, 5), (3, 2, 2, 5)))
@example(((1, 3, 1), (3,)))
@example(((), (1, 1)))
@example(((4, 6), (6, 4)))
@example(((0, 3), (3, 0)))
@example(((3, 0), (0,)))
def test_digits_are_where_numpy_puts_the_elements(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    if not only_splits_and_joins(before, after):
        with pytest.raises(NotWhole):
            list(digits_of(before, after))
        return
    groups = list(digits_of(before, after))
    assert np.array_equal(positions(before, groups), reshaped(before, after))
    assert all(digit.size != 1 for group in groups for digit in group)


def test_what_is_not_whole_is_said_where_it_is_met() -> None:
    found = digits_of((4, 6), (2, 2, 4, 3))
    assert [next(found), next(found)] == [(Digit(0, 2, 2),), (Digit(0, 1, 2),)]
    with pytest.raises(NotWhole) as error:
        next(found)
    assert (error.value.wanted, error.value.left) == (4, 6)
    with pytest.raises(NotWhole) as error:
        list(digits_of((4,), (4, 2)))
    assert (error.value.wanted, error.value.left) == (2, None)


def test_what_may_not_be_split_stays_whole() -> None:
    assert len(list(digits_of((4, 6), (2, 2, 6), may_split=lambda size: size != 6))) == 3
    with pytest.raises(NotWhole):
        list(digits_of((4, 6), (4, 2, 3), may_split=lambda size: size != 6))
