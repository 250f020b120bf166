"""One process a rank: collectives and models as one program a direction, against eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh import ranks

EXACT = ("bits", "broadcasts", "empty_and_single", "redistributed", "coalesced")
CLOSE = ("functional_collectives", "averages", "in_place", "autograd_collectives", "vocabulary_parallel", "experts")
MODELS = ("tensor_parallel", "sequence_parallel", "simple_fsdp", "fsdp2", "ddp")
OF_FOUR = ("two_axes", "fsdp_and_tensor_parallel")
ALL = (*EXACT, *CLOSE, *MODELS, "tensor_parallel_float64")


@pytest.fixture(scope="module", params=[2, 4])
def said(request: pytest.FixtureRequest) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """What two ranks say, and four: all cases in the same processes."""
    count = request.param
    yield count, ranks.run([*ALL, *(OF_FOUR if count == 4 else ())], count)


def largest(said: list[dict[str, Any]], case: str) -> float:
    for rank in said:
        assert case in rank, rank["output"][-3000:]
        given = rank[case]
        assert not (isinstance(given, dict) and "error" in given), given["trace"]
    values = [rank[case].values() if isinstance(rank[case], dict) else [rank[case]] for rank in said]
    return max(value for one in values for value in one)


@pytest.mark.parametrize("case", EXACT)
def test_collectives_are_exact(said: tuple[int, list[dict[str, Any]]], case: str) -> None:
    assert largest(said[1], case) <= 1e-7


@pytest.mark.parametrize("case", (*CLOSE, *MODELS))
def test_like_eager_in_one_process(said: tuple[int, list[dict[str, Any]]], case: str) -> None:
    assert largest(said[1], case) <= 1e-5


def test_float64(said: tuple[int, list[dict[str, Any]]]) -> None:
    assert largest(said[1], "tensor_parallel_float64") <= 1e-10


@pytest.mark.parametrize("case", OF_FOUR)
def test_two_axes(said: tuple[int, list[dict[str, Any]]], case: str) -> None:
    count, given = said
    if count == 4:
        assert largest(given, case) <= 1e-5


def test_every_rank_ends(said: tuple[int, list[dict[str, Any]]]) -> None:
    assert [rank["exit"] for rank in said[1]] == [0] * said[0], said[1][0]["output"][-2000:]
