"""Collectives read off compiled programs: kinds, axes, bytes, loops, and what the schedule has beside them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from bench.mesh_programs import FOUR_BY_FOUR, by_hand
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import hlo
from tpu_lowering.runtime.aot.collectives import Collective, collectives_of, groups_of, link_seconds
from tpu_lowering.runtime.aot.traffic import traffic_by_operands

ALL = PartitionSpec(("data", "model"))
SIDE = 2048
SQUARE = 2 * SIDE * SIDE  # bytes of bfloat16
TARGETS = ("v5e:4x4", "tpu7x:2x2x2")
RING = [(place, (place + 1) % 4) for place in range(4)]


def square(count: int) -> list[tuple[tuple[int, ...], PartitionSpec]]:
    return [((16 * SIDE, SIDE), ALL)] * count


@pytest.mark.sweep
@pytest.mark.parametrize("target", TARGETS)
def test_each_kind_is_counted_once_with_its_axes_and_bytes(target: str) -> None:
    def each(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, e: jax.Array) -> tuple[jax.Array, ...]:
        return (
            lax.psum(a, ("data", "model")),
            lax.all_gather(b, "data", axis=0, tiled=True),
            lax.psum_scatter(c, "model", scatter_dimension=1, tiled=True),
            lax.all_to_all(d, "model", 0, 1, tiled=True),
            lax.ppermute(e, "data", RING),
        )

    made = by_hand(each, square(5), (ALL,) * 5, target)
    assert {one.kind: (one.axes, one.ranks, one.operand_bytes, one.result_bytes, one.times) for one in
            made.collectives} == {
        "all-reduce": (("data", "model"), 16, SQUARE, SQUARE, 1),
        "all-gather": (("data",), 4, SQUARE, 4 * SQUARE, 1),
        "reduce-scatter": (("model",), 4, SQUARE, SQUARE // 4, 1),
        "all-to-all": (("model",), 4, SQUARE, SQUARE, 1),
        "collective-permute": (("data",), 4, SQUARE, SQUARE, 1),
    }  # fmt: skip
    assert len(made.collectives) == 5
    sent = {one.kind: one.sent_bytes / SQUARE for one in made.collectives}
    assert sent == {
        "all-reduce": 2 * 15 / 16, "all-gather": 3, "reduce-scatter": 3 / 4, "all-to-all": 3 / 4,
        "collective-permute": 1,
    }  # fmt: skip
    across = {one.kind: one.dimensions for one in made.collectives}
    assert across["all-reduce"] == (("x", "y") if target == "v5e:4x4" else ("x", "y", "z", "core"))
    assert across["all-gather"] != across["reduce-scatter"]


@pytest.mark.parametrize("target", TARGETS)
def test_combined_ones_are_one_and_loops_count(target: str) -> None:
    def small(a: jax.Array, b: jax.Array, c: jax.Array, layers: jax.Array) -> tuple[jax.Array, ...]:
        def layer(carry: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
            return lax.psum(jnp.tanh(carry @ weight), "data"), None

        return lax.psum(a, "model"), lax.psum(b, "model"), lax.scan(layer, c, layers)[0]

    shapes = [((16 * 128, 128), ALL), ((16 * 64, 128), ALL), ((16 * 256, 256), ALL), ((16 * 6, 256, 256), ALL)]
    made = by_hand(small, shapes, (ALL,) * 3, target)
    found = {one.axes: one for one in made.collectives}
    assert len(made.collectives) == 2
    assert (found["model",].operand_bytes, found["model",].times) == (2 * 128 * (128 + 64), 1)
    assert (found["data",].operand_bytes, found["data",].times) == (2 * 256 * 256, 6)
    assert made.sent_bytes == 2 * 2 * 128 * (128 + 64) * 3 // 4 + 6 * 2 * 2 * 256 * 256 * 3 // 4


@pytest.mark.sweep
@pytest.mark.parametrize("target", TARGETS)
def test_what_runs_beside_a_collective_is_named(target: str) -> None:
    def beside(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        return lax.all_gather(a, "data", axis=0, tiled=True), (b @ b) @ b

    made = by_hand(beside, square(2), (ALL, ALL), target)
    (one,) = made.collectives
    assert (one.kind, one.is_asynchronous, one.result_bytes) == ("all-gather", True, 4 * SQUARE)
    names = {operation.name: operation for operation in hlo.Module.of(made.hlo).entry}
    products = [name for name in one.overlapped if "dot_general" in names[name].op_name]
    assert len(products) == 2
    # The gather is read and written once, however many operations carry it on; each product reads and writes squares.
    traffic = traffic_by_operands(hlo.Module.of(made.hlo))
    at_least = SQUARE + 4 * SQUARE
    assert at_least <= made.hbm_bytes <= at_least + 2 * 4 * SQUARE + 8 * SQUARE
    assert all(traffic[name].total <= 3 * SQUARE for name in products)


def operation(details: str) -> hlo.Operation:
    return hlo.Operation("x", "all-reduce", (), (), "", (), 0, None, details=details)


def test_groups_are_read_in_every_form() -> None:
    rows = [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert groups_of(operation("replica_groups={{0,1,2,3},{4,5,6,7}}, x=y"), 8) == rows
    assert groups_of(operation("replica_groups=[2,4]<=[8], x=y"), 8) == rows
    assert groups_of(operation("replica_groups=[4,2]<=[2,4]T(1,0)"), 8) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert groups_of(operation("replica_groups={}"), 4) == [(0, 1, 2, 3)]
    assert groups_of(operation("source_target_pairs={{0,1},{1,0},{2,3},{5,2}}"), 8) == [(0, 1), (2, 3, 5)]
    with pytest.raises(ValueError, match="expected groups of devices, got mesh"):
        groups_of(operation("mesh[a=2]"), 4)


LOOP = """\
HloModule loop, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %state = (s32[], f32[8], s32[]) parameter(0)
  %one = s32[] constant(2)
  %i = s32[] get-tuple-element(%state), index=0
  %value = f32[8] get-tuple-element(%state), index=1
  %limit = s32[] get-tuple-element(%state), index=2
  %next = s32[] add(%i, %one)
  %reduced = f32[8] all-reduce(%value), replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, to_apply=%add
  ROOT %result = (s32[], f32[8], s32[]) tuple(%next, %reduced, %limit)
}

%condition (state.1: (s32[], f32[8], s32[])) -> pred[] {
  %state.1 = (s32[], f32[8], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit.1 = s32[] get-tuple-element(%state.1), index=2
  ROOT %less = pred[] compare(%i.1, %limit.1), direction=LT
}

ENTRY %main (x: f32[8], n: s32[]) -> f32[8] {
  %x = f32[8] parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(1)
  %ten = s32[] constant(10)
  %begin = (s32[], f32[8], s32[]) tuple(%zero, %x, %ten)
  %loop = (s32[], f32[8], s32[]) while(%begin), condition=%condition, body=%body
  ROOT %last = f32[8] get-tuple-element(%loop), index=1
}
"""
PLACES = [(place % 4, place // 4, 0, 0) for place in range(16)]


def test_a_loop_counts_from_its_first_number_by_its_step() -> None:
    (one,) = collectives_of(hlo.Module.of(LOOP), FOUR_BY_FOUR, PLACES)
    assert (one.times, one.axes, one.total_sent_bytes) == (5, ("model",), 5 * 2 * 32 * 3 // 4)


@pytest.mark.parametrize(("old", "new"), [("tuple(%zero, %x, %ten)", "tuple(%zero, %x, %n)"),
                                          ("direction=LT", "direction=NE"), ("constant(2)", "constant(0)")])  # fmt: skip
def test_a_loop_of_unknown_length_is_not_given_one(old: str, new: str) -> None:
    assert old in LOOP
    (one,) = collectives_of(hlo.Module.of(LOOP.replace(old, new)), FOUR_BY_FOUR, PLACES)
    assert (one.times, one.total_sent_bytes) == (None, 2 * 32 * 3 // 4)


def test_groups_that_are_no_axes_have_none() -> None:
    text = LOOP.replace("{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", "{{0,5},{1,4}}")
    (one,) = collectives_of(hlo.Module.of(text), FOUR_BY_FOUR, PLACES)
    assert (one.axes, one.ranks, one.dimensions, one.links) == ((), 2, ("x", "y"), 2)


def test_collectives_of_one_device_are_none() -> None:
    text = LOOP.replace("{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", "{{0},{1}}")
    assert collectives_of(hlo.Module.of(text), FOUR_BY_FOUR, PLACES) == ()


REDUCED = Collective("all-reduce", "r", "", ("model",), 4, 4000, 4000, 1, ("x",), 2, False, ())


def test_the_bound_of_links_adds_what_shares_a_dimension() -> None:
    v5e, v4, tpu7x = (chips.find(name) for name in ("v5e", "v4", "tpu7x"))
    other = dataclasses.replace(REDUCED, dimensions=("y",))
    both = dataclasses.replace(REDUCED, dimensions=("x", "y"), links=4)
    alone = 6000 / (2 * 5e10)
    assert link_seconds([REDUCED], v5e) == pytest.approx(alone)
    assert link_seconds([REDUCED, REDUCED], v5e) == pytest.approx(2 * alone)
    assert link_seconds([REDUCED, other], v5e) == pytest.approx(alone)
    assert link_seconds([REDUCED, both], v5e) == pytest.approx(1.5 * alone)
    assert link_seconds([REDUCED], v4) is None
    # Two devices of a chip share its links, unless their group is one.
    assert link_seconds([REDUCED], tpu7x) == pytest.approx(2 * 6000 / (2 * 1e11))
    core = dataclasses.replace(REDUCED, dimensions=("x", "core"), links=1)
    assert link_seconds([core], tpu7x) == pytest.approx(6000 / 1e11)
    on_chip = dataclasses.replace(REDUCED, dimensions=("core",), links=0)
    assert link_seconds([on_chip], tpu7x) == 0


def test_a_collective_checks_itself() -> None:
    with pytest.raises(ValueError, match="expected a collective of one device or more"):
        dataclasses.replace(REDUCED, ranks=0)
