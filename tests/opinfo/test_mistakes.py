"""What eager refuses of torch's operator database is refused with the same kind of exception.

By default a subset runs; with ``TPU_LOWERING_OPINFO=all`` (``make test-mistakes``) every entry.
"""

from __future__ import annotations

import os

import pytest

from tests.opinfo.mistakes import endings
from tests.opinfo.tasks import entries

SUBSET = [
    "mm",
    "softmax",
    "index_select",
    "index_add",
    "gather",
    "nn.functional.avg_pool2d",
    "nn.functional.cross_entropy",
    "pow",
    "remainder",
    "bmm",
    "masked_fill",
    "linalg.cholesky",
    "nn.functional.linear",
]

NAMES = list(entries("op")) if os.environ.get("TPU_LOWERING_OPINFO") == "all" else SUBSET

KNOWN: dict[str, str] = {}
"""Entries some of whose calls end otherwise, and why."""


@pytest.mark.parametrize("name", NAMES)
def test_calls_end_as_in_eager(name: str) -> None:
    others = [one for one in endings(name, entries("op")[name]) if one.verdict == "other"]
    assert bool(others) == (name in KNOWN), others
