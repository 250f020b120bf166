"""Operators along rows: a row of the table is all that one needs to become part of a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.fuse.against_eager import Seen, assert_trains_as_eager, fused
from tpu_lowering import compat, session
from tpu_lowering.fuse.space import along
from tpu_lowering.fuse.xla.heuristics import HEURISTICS

aten = compat.aten


def _flip(given: Any, at: int, rank: int, dtype: torch.dtype) -> along.Call:
    return aten.flip.default, ([at],), {}


@pytest.fixture
def flip_is_along(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    row = along.Along(
        lambda given, source, result: given["dims"][0] % len(source.shape), _flip, _flip, "rotation_passes"
    )
    monkeypatch.setitem(along.ALONG, aten.flip.default, row)
    session.clear()
    yield
    session.clear()


@pytest.mark.usefixtures("flip_is_along")
def test_another_operator_along_rows_is_computed_as_itself() -> None:
    """In the kernel, and in the plain form that XLA compiles."""
    x = torch.randn(40, 256)
    seen = Seen()
    found = fused(lambda x: torch.softmax(x, -1).flip(-1) * x, seen)(x)
    torch.testing.assert_close(found, torch.softmax(x, -1).flip(-1) * x)
    assert seen.kernels("inference") == ["softmax_rows"]
    assert any("aten.flip" in text for text in seen.texts)


def test_an_operator_that_is_not_in_the_table_stays_outside() -> None:
    seen = assert_trains_as_eager(
        lambda x: torch.softmax(x, -1).flip(-1) * x, [torch.randn(40, 256, requires_grad=True)]
    )
    assert not any("aten.flip" in text for text in seen.texts)


@pytest.mark.parametrize("row", along.ALONG.values(), ids=map(str, along.ALONG))
def test_passes_of_each_are_a_number_of_xlas(row: along.Along) -> None:
    assert getattr(HEURISTICS, row.passes) > 0
