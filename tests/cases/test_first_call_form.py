"""The first form of functionalised calls, ``auto_functionalized``, which older captures write: no bases, no views."""

from __future__ import annotations

import pytest
import torch

from tests.cases.case_kernels import accumulate, add_into, exp_into, exp_maybe, split_rows
from tests.cases.harness import Record, check


@pytest.fixture(autouse=True)
def _first_form():
    with torch._inductor.config.patch(enable_auto_functionalized_v2=False):
        yield


def form(record: Record) -> str:
    (text,) = [stage.text for stage in record.only.stages if stage.name == "specialise"]
    return "v1" if "auto_functionalized(" in text and "auto_functionalized_v2(" not in text else text


def make():
    return (torch.randn(8, 16),)


def test_an_output_is_fresh() -> None:
    def model(x):
        out = torch.empty_like(x)
        exp_into(x * 2, out)
        return out + 1

    record = check(model, make, fresh=("exp_into.out",), aliased=(), allocations=0)
    assert form(record) == "v1"


def test_an_accumulated_fill_is_kept() -> None:
    def model(x):
        out = torch.zeros_like(x)
        accumulate(x, out)
        add_into(x, out, out)
        return out

    record = check(model, make)
    assert form(record) == "v1"


def test_a_list_of_outputs() -> None:
    def model(x):
        outs = [torch.empty(4, 16), torch.empty(4, 16)]
        split_rows(x, outs)
        return outs

    record = check(model, make, allocations=0)
    assert form(record) == "v1"


def test_an_optional_output() -> None:
    def model(x):
        out = torch.empty_like(x)
        mask = torch.empty_like(x, dtype=torch.bool)
        exp_maybe(x, out)
        exp_maybe(x, out, mask)
        return out, mask

    record = check(model, make, allocations=0)
    assert form(record) == "v1"
