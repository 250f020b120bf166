"""Results of torch's operator database on arguments that are not row-major have eager's strides.

By default a subset runs; with ``TPU_LOWERING_OPINFO=all`` (``make test-strides``) every entry.
"""

from __future__ import annotations

import os
import warnings

import pytest

from tests.opinfo.strides import differences
from tests.opinfo.tasks import entries

SUBSET = ["add", "addr", "cat", "copysign", "cumsum", "div.floor_rounding", "floor_divide", "gather", "heaviside", "index_select", "ldexp", "logaddexp", "logical_and", "logical_or", "logical_xor", "masked_fill", "nn.functional.batch_norm", "nn.functional.max_pool2d", "nn.functional.max_unpool2d", "roll", "softmax", "sort", "sum", "where", "xlogy", "__getitem__"]  # fmt: skip

EVERYTHING = os.environ.get("TPU_LOWERING_OPINFO") == "all"
NAMES = list(entries("op")) if EVERYTHING else SUBSET

EARLY = "torch takes it apart before AOTAutograd's table is asked"
KNOWN = {
    "as_strided_scatter": "of an expanded tensor, which has no memory of its own that a program could be given",
    "native_batch_norm": EARLY,
    "nn.functional.batch_norm": EARLY,
    "nn.functional.interpolate.nearest": EARLY,
    "nn.functional.interpolate.nearest-exact": EARLY,
    "nn.functional.upsample_nearest": EARLY,
    "resize_as_": "Dynamo does not trace it",
}
"""Entries some of whose results have other strides, and why."""


@pytest.mark.parametrize("name", NAMES)
def test_strides_are_eagers(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [difference for _, difference in differences(name, entries("op")[name], 3 if EVERYTHING else 1)]
    others = [one for one in found if one is not None and "rror: " not in one.got and "Exception: " not in one.got]
    assert bool(others) == (name in KNOWN), others
