"""What counts as a changed result."""

from __future__ import annotations

import pytest
import torch

from tpu_lowering.ir import interpreter

BFLOAT16 = torch.tensor([16.0, 0.125], dtype=torch.bfloat16)
LARGE = torch.tensor([510.0, 0.0, -torch.inf])


@pytest.mark.parametrize(
    ("before", "after", "index"),
    [
        (LARGE, LARGE + torch.tensor([0, 9e-5, 0]), None),  # terms of 510 that cancel, added in another order
        (LARGE, LARGE + torch.tensor([0, 9e-3, 0]), 0),
        (BFLOAT16, BFLOAT16 + torch.tensor([0, 0.0625], dtype=torch.bfloat16), None),  # of terms that are rounded
        (BFLOAT16, BFLOAT16 + torch.tensor([0, 0.125], dtype=torch.bfloat16), 0),
        (LARGE / 510, LARGE / 510 + torch.tensor([0, 9e-5, 0]), 0),
        (LARGE, LARGE.abs(), 0),
        (LARGE, LARGE.double(), 0),
        (LARGE, LARGE[:2], 0),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), None),
        (torch.tensor([torch.nan]), torch.tensor([1.0]), 0),
        (torch.tensor([1000]), torch.tensor([1001]), 0),
        (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.float8_e4m3fn), None),
        (torch.ones(0), torch.ones(0), None),
    ],
)
def test_rounding_is_not_a_difference_and_anything_else_is(
    before: torch.Tensor, after: torch.Tensor, index: int | None
) -> None:
    assert interpreter.differing([before], [after]) == index
