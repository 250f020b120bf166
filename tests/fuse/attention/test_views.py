"""What the dimensions of views are made of, against the elements that they show."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import fx

from tests.ir.reshapes import Shape, only_splits_and_joins, positions, reshaped, reshapes
from tpu_lowering.fuse.attention.paged.stacked_caches import Places, is_apart, is_part, places_of
from tpu_lowering.fuse.attention.views import REPEATED, view_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box

aten = torch.ops.aten
SHAPE = (2, 6, 4, 3)


def argument(shape: tuple[int, ...]) -> fx.Node:
    node = fx.Graph().placeholder("x")
    with graphs.fake_mode(node.graph):
        node.meta["val"] = torch.empty(shape)
    return node


def step(node: fx.Node, choose: random.Random) -> fx.Node:
    """A view of a node."""
    shape = list(graphs.type_of(node).shape)
    match choose.choice(("permute", "merge", "cut", "expand", "add")):
        case "permute":
            return graphs.call(node.graph, aten.permute.default, node, choose.sample(range(len(shape)), len(shape)))
        case "merge" if len(shape) > 1:
            at = choose.randrange(len(shape) - 1)
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        case "cut":
            at = choose.randrange(len(shape))
            size = choose.choice([x for x in range(1, shape[at] + 1) if shape[at] % x == 0])
            shape[at : at + 1] = [size, shape[at] // size]
        case "expand":
            return graphs.call(node.graph, aten.expand.default, node, [2 if size == 1 else size for size in shape])
        case _:
            shape.insert(choose.randrange(len(shape) + 1), 1)
    return graphs.call(node.graph, aten.reshape.default, node, shape)


@pytest.mark.parametrize("seed", range(50))
def test_digits_are_the_elements(seed: int) -> None:
    choose = random.Random(seed)
    base = node = argument(SHAPE)
    value = torch.arange(math.prod(SHAPE)).view(SHAPE)
    for _ in range(6):
        node = step(node, choose)
        value = node.target(value, *node.args[1:])  # type: ignore[operator]
    view = view_of(node)
    if view.base is not base:  # a reshape that cuts a dimension where no digit ends
        assert view.base.target is aten.reshape.default
        return
    steps = {axis: math.prod(SHAPE[axis + 1 :]) for axis in range(len(SHAPE))} | {REPEATED: 0}
    found = torch.zeros((), dtype=torch.int64)
    for dim in view.dims:
        for digit in dim:
            found = found[..., None] + torch.arange(digit.size) * digit.stride * steps[digit.axis]
    assert torch.equal(found.reshape(value.shape), value)
    assert [math.prod(digit.size for digit in dim) for dim in view.dims] == list(value.shape)


@given(reshapes())
@example(((0, 3), (3, 0)))
@example(((4, 2), (8,)))
def test_digits_of_a_reshape(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    base = argument(before)
    view = view_of(graphs.call(base.graph, aten.reshape.default, base, list(after)))
    assert (view.base is base) == only_splits_and_joins(before, after)
    if view.base is base:
        assert np.array_equal(positions(before, view.dims), reshaped(before, after))
        assert all(outer.axis != inner.axis for dim in view.dims for outer, inner in itertools.pairwise(dim))


def test_places() -> None:
    """Pages [layers, pages, heads, 8, 128] of one layer, those of the heads outside."""
    base = argument((3, 10, 2, 8, 128))
    box = Box.of([(1, 2, 1), (4, 10, 2), (0, 2, 1), (0, 8, 1), (0, 128, 1)])
    part = graphs.call(base.graph, read_box, base, box)
    pages = graphs.call(base.graph, aten.reshape.default, part, [3, 2, 8, 128])
    source = graphs.call(base.graph, aten.permute.default, pages, [1, 0, 2, 3])
    found = places_of(source, (2, 3, 1, 8, 128))
    assert found == Places(base, 60, start=20 + 8, head_step=1, page_step=4)
    assert is_part(source) and is_apart(source) and not found.is_by_head(2)
    assert places_of(base, (1, 30, 2, 8, 128)) == Places(base, 60, 0, 1, 2)
    assert places_of(base, (30, 2, 1, 8, 128)) == Places(base, 60, 0, 2, 1)
    rows = argument((30, 8, 2, 128))
    apart = graphs.call(rows.graph, aten.permute.default, rows, [2, 0, 1, 3])
    assert places_of(apart, (2, 30, 1, 8, 128)) is None and is_apart(apart) and not is_part(apart)


def test_part_of_what_is_only_computed() -> None:
    """It would be written as a whole for a kernel that needs some of it."""
    base = argument((3, 2, 8, 128))
    twice = graphs.call(base.graph, aten.mul.Tensor, base, 2)
    part = graphs.call(base.graph, read_box, twice, Box.of([(1, 3, 1), (0, 2, 1), (0, 8, 1), (0, 128, 1)]))
    assert places_of(part, (2, 2, 1, 8, 128)) is None
    base.graph.output((twice, part))
    assert places_of(part, (2, 2, 1, 8, 128)) == Places(twice, 6, 2, 2, 1)
