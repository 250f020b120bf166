"""What goes wrong between ranks: one coded error on all that are left, in time, and processes that end.

``TPU_LOWERING_MESH=all`` tries every way for a rank to be gone.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest

from tests.mesh import faults, ranks

SECONDS = 60
TOGETHER = (
    "refused_on_one",  # before the ranks are connected
    "another_program",
    "other_options",
    "another_size",
    "alone_without_collective",
    "uneven_shard",
    "unequal_exchange",
    "on_a_device",
    "started_again",
)
"""Cases after which the ranks can go on."""


@functools.cache
def said(cases: tuple[str, ...], count: int = 2, seconds: int = 60) -> list[dict[str, Any]]:
    return ranks.run(cases, count, 180, TESTS_GROUP_SECONDS=str(seconds))


def texts(cases: tuple[str, ...], case: str, count: int = 2, seconds: int = 60) -> list[str]:
    """The error that each rank got; those that ended without a word are left out, and print what they printed."""
    found = []
    for rank in said(cases, count, seconds):
        if case not in rank:
            print(rank["output"], "exit status", rank["exit"])
        else:
            assert isinstance(rank[case], list), rank[case]["trace"]
            text, took = rank[case]
            assert took < SECONDS
            found.append(text)
    return found


DIFFERENT = """[TL702] ranks have different programs: rank 0 and rank 1
  at   {where}
  why  expected one program on all ranks, got another line {line}
  fix  give all ranks the same versions, options, sizes and types; where torch puts a rank's own number into the graph, \
set torch.distributed.config.compile_on_one_rank = True before the function is compiled"""

SUM = 'faults.py:{line} in function: return functional.all_reduce({value}, "sum", dist.group.WORLD)'
CROSSED = """[TL703] ranks wait for each other: rank 0 and rank 1
  why  expected all ranks to run the same programs in the same order, got rank 0 waiting in {zero}, rank 1 in {one}
  fix  give all ranks arguments of the same sizes and types, and let them call compiled functions in one order: what \
one rank compiles alone must have no collective"""
STOPPED = """[TL704] rank stopped: rank 1
  why  expected it to take part in {what}, got no sign of life
  fix  look at its output; start all ranks again, from a checkpoint"""


def line_of(text: str) -> int:
    """The number of the line of ``faults.py`` that holds a text."""
    lines = pathlib.Path(faults.__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def other_options_are_named() -> None:
    where = SUM.format(line=line_of("x * 2"), value="x * 2")
    found = texts(TOGETHER, "other_options")
    assert len(set(found)) == 1 and len(found) == 2
    wanted = DIFFERENT.format(where=where, line="{line}").partition("{line}")
    assert found[0].startswith(wanted[0]) and found[0].endswith(wanted[2])
    assert "'option poison = False' on rank 0, 'option poison = True' on rank 1" in found[0]


DIFFERENCES = (
    ("another_program", "stablehlo.constant dense<2.000000e+00> : tensor<f32>' on rank 0"),
    ("another_size", "tensor<8xf32>"),
    ("uneven_shard", "tensor<6x2xf32>"),
)


def other_programs_are_named_on_all_ranks() -> None:
    for case, difference in DIFFERENCES:
        first, second = texts(TOGETHER, case)
        assert first == second and first.startswith("[TL702] ranks have different programs: rank 0 and rank 1\n  at   ")
        assert difference in first


def a_refusal_of_one_rank_is_that_of_all() -> None:
    first, second = texts(TOGETHER, "refused_on_one")
    assert first == second and first.startswith("[TL201] operator has no JAX implementation: tests_faults.unknown")


def without_collective_a_rank_compiles_alone() -> None:
    assert texts(TOGETHER, "alone_without_collective") == ["", ""]


def unequal_exchange_is_refused() -> None:
    first, second = texts(TOGETHER, "unequal_exchange")
    assert (
        first
        == f"""[TL705] collective that no program of all ranks can have: \
_c10d_functional.all_to_all_single.default
  at   faults.py:{line_of("splits, splits")} in function: return functional.all_to_all_single(x, splits, splits, \
dist.group.WORLD)
  why  expected a collective of equal parts (all_reduce, all_gather, reduce_scatter, all_to_all, broadcast), got \
input_split_sizes = [1, 3]: shapes would differ from rank to rank
  fix  run it in eager torch, between two programs, with options={{"fallback": "eager"}}"""
    )
    assert second == first.replace("[1, 3]", "[3, 1]")


def a_device_that_no_ranks_share() -> None:
    wanted = f"""[TL707] tensors that no ranks can share a program on: a program on the mesh axis_1 2
  at   {SUM.format(line=line_of("x * 2"), value="x * 2")}
  why  expected tensors on the CPU, one process a rank, got a program on cpu:0
  fix  move the model and its inputs to the CPU, without options['device']; or keep collectives in eager torch, with options={{"fallback": "eager"}}"""
    assert texts(TOGETHER, "on_a_device") == [wanted, wanted]


def test_ranks_that_can_go_on() -> None:
    """All in the same processes, which end well."""
    other_options_are_named()
    other_programs_are_named_on_all_ranks()
    a_refusal_of_one_rank_is_that_of_all()
    without_collective_a_rank_compiles_alone()
    unequal_exchange_is_refused()
    a_device_that_no_ranks_share()
    assert texts(TOGETHER, "started_again") == ["", ""]
    assert [rank["exit"] for rank in said(TOGETHER)] == [0, 0]


def test_a_rank_that_compiles_alone() -> None:
    wanted = CROSSED.format(zero="program 1", one="the making of program 2")
    assert texts(("again_after_a_fault",), "again_after_a_fault") == [wanted, wanted]
    assert [rank["exit"] for rank in said(("again_after_a_fault",))] == [0, 0]


def test_programs_in_another_order() -> None:
    wanted = CROSSED.format(zero="program 1", one="program 2")
    assert texts(("other_order",), "other_order") == [wanted, wanted]


DYING = {
    "dies_in_a_call": "program 1",
    "dies_before_a_call": "program 1",
    "dies_before_a_program": "the first program",
}
DEAD = list(DYING) if ranks.ALL else ["dies_before_a_call"]


@pytest.mark.parametrize("case", DEAD)
def test_a_rank_that_dies(case: str) -> None:
    what = DYING[case]
    assert texts((case,), case) == [STOPPED.format(what=what)]
    assert [rank["exit"] for rank in said((case,))] == [0, 7]


GONE = {
    "first_rank_dies": "[TL704] rank stopped: the process that holds torch's store (",
    "never_comes": "[TL703] ranks wait for each other: rank 1\n  why  expected it in the first program within ",
}


@pytest.mark.parametrize("case", list(GONE) if ranks.ALL else ["first_rank_dies"])
def test_a_rank_that_is_not_there(case: str) -> None:
    assert texts((case,), case, seconds=8)[0].startswith(GONE[case])


def test_groups_that_are_no_grid() -> None:
    found = texts(("irregular_group", "other_meshes"), "irregular_group", count=4)
    wanted = f"""[TL701] groups of ranks that are no grid: [0, 1, 3]
  at   faults.py:{line_of('x, "sum", group)')} in function: return functional.all_reduce(x, "sum", group)
  why  expected groups of ranks that are lines or planes of one grid, got the ranks [0, 1, 3]
  fix  make the groups with torch.distributed.device_mesh.init_device_mesh"""
    assert found == [wanted, wanted, "", wanted]


def test_ranks_that_wait_in_other_meshes() -> None:
    found = texts(("irregular_group", "other_meshes"), "other_meshes", count=4)
    wanted = CROSSED.format(zero="program 1 of the ranks [0, 1]", one="program 1 of the ranks [0, 1, 2, 3]")
    assert found == [wanted] * 4
