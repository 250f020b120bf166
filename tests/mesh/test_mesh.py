"""One process a rank: collectives and models as one program a direction, against eager.

``TPU_LOWERING_MESH=all`` runs every case on four ranks too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh import ranks

EXACT = ("bits", "broadcasts", "empty_and_single", "redistributed", "exchange_in_eager")
CLOSE = ("functional_collectives", "averages", "coalesced", "in_place", "autograd_collectives", "experts", "stages")
MODELS = ("vocabulary_parallel", "tensor_parallel", "sequence_parallel", "simple_fsdp", "fsdp2", "ddp", "kernels")
OTHERS = ("tensor_parallel_float64", "counts", "edges", "memory", "verified")
OF_FOUR = ("two_axes", "hybrid_fsdp", "fsdp_and_tensor_parallel", "dropout")
TWO = (*EXACT, *CLOSE, *MODELS, *OTHERS)
FOUR = (*OF_FOUR, *(TWO if os.environ.get("TPU_LOWERING_MESH") == "all" else ("stages", "sequence_parallel")))

Said = list[dict[str, Any]]


@pytest.fixture(scope="module")
def two() -> Iterator[Said]:
    """What each of two ranks says: all cases in the same processes."""
    yield ranks.run(TWO, 2)


@pytest.fixture(scope="module")
def four() -> Iterator[Said]:
    yield ranks.run(FOUR, 4, 600)


def given(said: Said, case: str) -> list[Any]:
    """What the ranks gave for a case."""
    for rank in said:
        assert case in rank, rank["output"][-3000:]
        assert not (isinstance(rank[case], dict) and "error" in rank[case]), rank[case]["trace"]
    return [rank[case] for rank in said]


def largest(said: Said, case: str) -> float:
    values = [one.values() if isinstance(one, dict) else [one] for one in given(said, case)]
    return max(value for one in values for value in one)


@pytest.mark.parametrize("case", EXACT)
def test_equal_to_eager(two: Said, case: str) -> None:
    assert largest(two, case) <= 1e-7


@pytest.mark.parametrize("case", (*CLOSE, *MODELS))
def test_close_to_eager(two: Said, case: str) -> None:
    assert largest(two, case) <= 1e-5


def test_float64(two: Said) -> None:
    assert largest(two, "tensor_parallel_float64") <= 1e-10


def test_collectives_of_each_direction(two: Said) -> None:
    """One program a direction, and no collective too many: of six parameters four are needed by the backward too."""
    for counts in given(two, "counts"):
        assert counts["tensor parallel"] == {"forward": {"all_reduce": 1}, "backward": {"all_reduce": 1}}
        both = {"all_gather": 1, "reduce_scatter": 1}
        assert counts["sequence parallel"] == {"forward": both, "backward": both}
        backward = {"all_gather": 4, "reduce_scatter": 6}
        assert counts["simple FSDP"] == {"forward": {"all_gather": 6}, "backward": backward}


def test_no_more_than_a_layer_is_whole(two: Said) -> None:
    """Eight layers: what is saved is parts, and a program has room for a whole layer, its part, and its gradient."""
    for said in given(two, "memory"):
        assert said.pop("largest saved") == 0.5
        assert max(said.values()) <= 2.1


def test_verified_and_explained(two: Said) -> None:
    assert largest(two, "verified") <= 1e-5


def test_arguments_are_not_copied(two: Said) -> None:
    assert given(two, "edges") == [{"arguments are where they lie": True}] * 2


@pytest.mark.parametrize("case", [case for case in FOUR if case not in ("dropout", *OTHERS)])
def test_four_ranks(four: Said, case: str) -> None:
    assert largest(four, case) <= 1e-5


def test_dropout(four: Said) -> None:
    for said in given(four, "dropout"):
        assert said == {"model ranks agree": True, "data ranks differ": True, "half is kept": True}


def test_every_rank_ends(two: Said, four: Said) -> None:
    assert [rank["exit"] for rank in (*two, *four)] == [0] * 6
