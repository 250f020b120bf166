"""Meshes: axes that groups of ranks lie along."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_lowering.ir.mesh import ONE_DEVICE, Irregular, Mesh, filled, of_groups


def test_coordinates() -> None:
    mesh = Mesh(("data", "model"), (2, 3), tuple(range(6)))
    assert mesh.coordinates(4) == {"data": 1, "model": 1}
    assert (mesh.count, mesh.size(("model",)), str(mesh)) == (6, 3, "data 2 x model 3")


def test_groups_of_a_grid() -> None:
    mesh, along = of_groups(3, [(2, 3), (1, 3)])
    assert mesh == Mesh(("axis_2", "axis_1"), (2, 2), (0, 1, 2, 3))
    assert along == {(2, 3): ("axis_1",), (1, 3): ("axis_2",)}


def test_group_of_two_axes() -> None:
    mesh, along = of_groups(5, [(4, 5), (0, 1, 4, 5)])
    assert mesh == Mesh(("axis_4", "axis_1"), (2, 2), (0, 1, 4, 5))
    assert along[0, 1, 4, 5] == ("axis_4", "axis_1")


def test_ranks_apart_have_meshes_of_their_own() -> None:
    assert of_groups(2, [(2, 3)])[0] == Mesh(("axis_1",), (2,), (2, 3))


def test_a_group_of_one_is_no_axis() -> None:
    assert of_groups(2, [(2,)])[0] == Mesh((), (), (2,))


@pytest.mark.parametrize("groups", [[(0, 1, 3)], [(0, 1, 2), (0, 1)], [(1, 0)], [(0, 2), (0, 3)]])
def test_irregular_groups(groups: list[tuple[int, ...]]) -> None:
    with pytest.raises(Irregular):
        of_groups(0, groups)


@given(sizes=st.lists(st.integers(2, 3), min_size=1, max_size=3), chosen=st.data())
def test_every_rank_finds_the_same_mesh(sizes: list[int], chosen: st.DataObject) -> None:
    """Ranks of one grid, each with the groups that it is in, agree on axes and ranks."""
    dims = range(len(sizes))
    subsets = [s for count in range(1, len(sizes) + 1) for s in itertools.combinations(dims, count)]
    wanted = [tuple(dims), *chosen.draw(st.lists(st.sampled_from(subsets), max_size=3))]
    places = list(itertools.product(*map(range, sizes)))
    found = set()
    for rank, place in enumerate(places):
        groups = [
            tuple(other for other, at in enumerate(places) if all(at[d] == place[d] for d in dims if d not in subset))
            for subset in wanted
        ]
        mesh, along = of_groups(rank, groups)
        found.add((mesh, tuple(along[group] for group in groups)))
    assert len(found) == 1


def test_ranks_that_are_a_whole_grid_have_axes() -> None:
    mesh = Mesh(("a", "b", "c"), (2, 2, 4), tuple(range(16)))
    assert mesh.axes_of(range(16)) == ("a", "b", "c")
    assert mesh.axes_of((4, 5, 6, 7)) == ("c",)
    assert mesh.axes_of((1, 5, 9, 13)) == ("a", "b")
    assert mesh.axes_of((0, 1)) == mesh.axes_of((0, 5)) == mesh.axes_of((3,)) == ()


def test_a_mesh_is_filled_up_to_all_ranks() -> None:
    mesh, _ = of_groups(5, [(1, 5, 9, 13)])
    assert str(mesh) == "axis_4 4"
    whole = filled(mesh, 32)
    assert (whole.axes, whole.sizes) == (("axis_16", "axis_4", "axis_1"), (2, 4, 4))
    assert whole.ranks == tuple(range(32))
    assert str(filled(None, 8)) == "axis_1 8"
    assert str(filled(None, 1)) == str(ONE_DEVICE) == "one device"


@pytest.mark.parametrize("count", [12, 6, 4])
def test_a_mesh_that_does_not_fill_all_ranks_is_none(count: int) -> None:
    mesh, _ = of_groups(0, [(0, 4, 8, 12)])
    with pytest.raises(Irregular, match=f"axis_4 4 on {count} devices"):
        filled(mesh, count)
