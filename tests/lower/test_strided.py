"""``as_strided`` on row-major memory: decoded views, overlapping views, and writes through both."""

from __future__ import annotations

import pytest
import torch

from tests.lower.evaluate import capture, evaluate
from tpu_lowering.lower.aten.strided import Cut, Cuts, decode

BASE = (6, 4, 5)

NESTED = {
    "whole": ((6, 4, 5), (20, 5, 1), 0),
    "transposed": ((5, 6, 4), (1, 20, 5), 0),
    "first rows": ((2, 4, 5), (20, 5, 1), 0),
    "middle rows": ((2, 4, 5), (20, 5, 1), 40),
    "one column": ((6, 4), (20, 5), 3),
    "every second": ((3, 4, 3), (40, 5, 2), 0),
    "flat": ((120,), (1,), 0),
    "flat, step 7": ((17,), (7,), 1),
    "row across a boundary": ((2, 8), (40, 1), 17),
    "kept dimension of one": ((6, 1, 5), (20, 99, 1), 5),
    "one element": ((), (), 119),
    "diagonal": ((4,), (26,), 0),
}
REPEATED = {
    "broadcast": ((6, 3, 5), (20, 0, 1), 10),
    "broadcast scalar": ((2, 3), (0, 0), 7),
}
OVERLAPPING = {
    "windows": ((10, 4), (1, 1), 0),
    "windows of rows": ((5, 2, 20), (20, 20, 1), 0),
}


def _base() -> torch.Tensor:
    return torch.arange(120, dtype=torch.float32).reshape(BASE)


@pytest.mark.parametrize("view", NESTED | REPEATED | OVERLAPPING, ids=str)
def test_reads_what_torch_reads(view: str) -> None:
    arguments = (NESTED | REPEATED | OVERLAPPING)[view]
    graph = capture(lambda x: x.as_strided(*arguments), _base())
    (result,) = evaluate([graph], [[_base()]])
    torch.testing.assert_close(result, _base().as_strided(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("view", NESTED, ids=str)
def test_writes_what_torch_writes(view: str) -> None:
    arguments = NESTED[view]
    source = -1 - torch.arange(_base().as_strided(*arguments).numel(), dtype=torch.float32)
    source = source.reshape(arguments[0])
    graph = capture(lambda x, src: torch.as_strided_scatter(x, src, *arguments), _base(), source)
    (result,) = evaluate([graph], [[_base(), source]])
    expected = torch.as_strided_scatter(_base(), source, *arguments)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("view", NESTED, ids=str)
def test_nested_views_need_no_gather(view: str) -> None:
    assert decode(*NESTED[view]) is not None


@pytest.mark.parametrize("view", OVERLAPPING, ids=str)
def test_overlapping_views_are_not_decoded(view: str) -> None:
    assert decode(*OVERLAPPING[view]) is None


def test_a_column_is_a_slice_of_rows() -> None:
    assert decode((6, 4), (20, 5), 43) == Cuts((Cut(0, 40, 6, 20), Cut(1, 0, 4, 5)), 3)
