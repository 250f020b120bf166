"""Subsets of values against all their elements: reshapes, slices of slices, hulls, and what lies within one."""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import torch

from tpu_lowering.ir.reshapes import NotWhole, digits_of
from tpu_lowering.ir.subsets import Places, Subset

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)
RESHAPED = [list(shape) for rank in range(1, 5) for shape in itertools.product([1, 2, 3, 4, 6, 8, 12], repeat=rank)]
many = hypothesis.settings(deadline=None, max_examples=300)


@st.composite
def places(draw: st.DrawFn, size: int) -> Places:
    start = draw(st.integers(0, size - 1))
    found = range(start, size, draw(st.integers(1, 3)))
    return Places.of(size, found[: draw(st.integers(1, len(found)))])


@st.composite
def subsets(draw: st.DrawFn, shape: list[int]) -> Subset:
    return Subset(tuple((draw(places(size)),) if size > 1 else () for size in shape))


def elements(subset: Subset) -> torch.Tensor:
    """The numbers of a subset's elements, in its shape."""
    return at(torch.arange(math.prod(subset.sizes)), subset)


def is_one(taken: set[int], shape: list[int]) -> bool:
    """Whether elements are all combinations of positions along each dimension, evenly apart."""
    value = torch.tensor([at in taken for at in range(math.prod(shape))]).view(shape)
    along = [value.any([other for other in range(len(shape)) if other != dim]) for dim in range(len(shape))]
    steps = [one.nonzero().flatten().diff() for one in along]
    return math.prod(int(one.sum()) for one in along) == len(taken) and all((one == one[:1]).all() for one in steps)


@many
@hypothesis.given(st.data())
def test_a_reshape_holds_the_same_elements(data: st.DataObject) -> None:
    """What is found is right, and of a reshape that splits and joins what is a subset is found."""
    source = data.draw(SHAPES)
    shape = data.draw(st.sampled_from([one for one in RESHAPED if math.prod(one) == math.prod(source)] or [source]))
    subset = data.draw(subsets(source))
    found = subset.reshaped(shape)
    if found is None:
        assert not splits_and_joins(source, shape) or not is_one(set(elements(subset).flatten().tolist()), shape)
    else:
        assert found.sizes == tuple(shape)
        assert elements(found).flatten().tolist() == elements(subset).flatten().tolist()
        back = found.reshaped(source)
        assert back == subset or (back is None and not splits_and_joins(shape, source))


def splits_and_joins(source: list[int], shape: list[int]) -> bool:
    try:
        return bool(list(digits_of(source, shape)))
    except NotWhole:
        return False


@many
@hypothesis.given(st.data())
def test_a_hull_holds_both(data: st.DataObject) -> None:
    source = data.draw(SHAPES)
    one, other = (data.draw(subsets(source)) for _ in range(2))
    shape = data.draw(st.sampled_from([one for one in RESHAPED if math.prod(one) == math.prod(source)] or [source]))
    if (first := one.reshaped(shape)) is not None and (second := other.reshaped(shape)) is not None:
        one, other = first, second  # dimensions of several digits
    hull = one.hull(other)
    for found in (one, other):
        assert torch.equal(at(elements(hull), found.within(hull)), elements(found))


def at(value: torch.Tensor, subset: Subset) -> torch.Tensor:
    digits = subset.apart()
    return value.reshape(digits.sizes)[digits.box().slices()].reshape(subset.shape)


@many
@hypothesis.given(st.data())
def test_a_subset_of_a_slice_is_one_of_the_value(data: st.DataObject) -> None:
    source = data.draw(SHAPES)
    taken = data.draw(subsets(source))
    inner = data.draw(subsets(list(taken.shape)))
    assert torch.equal(elements(inner.of_slice(taken)), at(elements(taken), inner))


def test_the_last_of_the_last() -> None:
    last = Subset(((Places.of(2048, range(2047, 2048)),),))
    assert last.reshaped((8, 1, 256)) == Subset(((Places.of(8, range(7, 8)),), (), (Places.of(256, range(255, 256)),)))
    every = Subset(((Places.of(12, range(1, 12, 4)),),))
    assert every.reshaped((3, 4)) == Subset(((Places.of(3, range(3)),), (Places.of(4, range(1, 2)),)))
    assert Subset(((Places.of(12, range(2, 5)),),)).reshaped((3, 4)) is None
