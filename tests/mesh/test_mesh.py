"""One process a rank: collectives and models as one program a direction, against eager.

``TPU_LOWERING_MESH=all`` runs every case on four ranks too, and models of two layers in place of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.mesh import ranks

EXACT = ("bits", "broadcasts", "empty_and_single", "redistributed", "exchange_in_eager")
CLOSE = (
    "functional_collectives",
    "averages",
    "coalesced",
    "in_place",
    "autograd_collectives",
    "experts",
    "stages",
    "dynamic_sizes",
)
MODELS = ("vocabulary_parallel", "tensor_parallel", "sequence_parallel", "simple_fsdp", "fsdp2", "ddp", "kernels")
OTHERS = ("tensor_parallel_float64", "counts", "edges", "memory", "verified")
OF_FOUR = ("two_axes", "hybrid_fsdp", "sharded_on_both_axes", "fsdp_and_tensor_parallel", "dropout")
TWO = (*EXACT, *CLOSE, *MODELS, *OTHERS)
FOUR = (*OF_FOUR, *(TWO if ranks.ALL else ()))

Said = list[dict[str, Any]]


def given(said: Said, case: str) -> list[Any]:
    """What the ranks gave for a case."""
    for rank in said:
        assert case in rank, rank["output"][-3000:]
        assert not (isinstance(rank[case], dict) and "error" in rank[case]), f"{case}: {rank[case]['trace']}"
    return [rank[case] for rank in said]


def largest(said: Said, case: str) -> float:
    values = [one.values() if isinstance(one, dict) else [one] for one in given(said, case)]
    return max(value for one in values for value in one)


def too_large(said: Said, cases: Iterable[str], limit: float) -> dict[str, float]:
    """The cases that differ from eager by more than a limit, and by how much."""
    found = {case: largest(said, case) for case in cases}
    return {case: difference for case, difference in found.items() if not difference <= limit}


def test_two_ranks() -> None:
    """All cases in the same two processes, which end well."""
    said = ranks.run(TWO, 2)
    assert too_large(said, EXACT, 1e-7) == {}
    assert too_large(said, (*CLOSE, *MODELS, "verified"), 1e-5) == {}
    assert too_large(said, ["tensor_parallel_float64"], 1e-10) == {}
    check_collectives(said)
    check_memory(said)
    assert given(said, "edges") == [{"arguments are where they lie": True}] * 2
    assert [rank["exit"] for rank in said] == [0, 0]


def check_collectives(said: Said) -> None:
    """One program a direction, and no collective too many: of six parameters four are needed by the backward too."""
    for counts in given(said, "counts"):
        assert counts["tensor parallel"] == {"forward": {"all_reduce": 1}, "backward": {"all_reduce": 1}}
        both = {"all_gather": 1, "reduce_scatter": 1}
        assert counts["sequence parallel"] == {"forward": both, "backward": both}
        backward = {"all_gather": 4, "reduce_scatter": 6}
        assert counts["simple FSDP"] == {"forward": {"all_gather": 6}, "backward": backward}


def check_memory(said: Said) -> None:
    """Eight layers: what is saved is parts, and a program has room for a whole layer, its part, and its gradient."""
    for bytes_ in given(said, "memory"):
        assert bytes_.pop("largest saved") == 0.5
        assert max(bytes_.values()) <= 2.1


def test_four_ranks() -> None:
    said = ranks.run(FOUR, 4, 600)
    assert too_large(said, [case for case in FOUR if case not in ("dropout", *OTHERS)], 1e-5) == {}
    for dropped in given(said, "dropout"):
        assert dropped == {"model ranks agree": True, "data ranks differ": True, "half is kept": True}
    assert [rank["exit"] for rank in said] == [0] * 4
