"""What is cut into pieces, as boxes: values and gradients against eager, and that nothing is cut any more."""

from __future__ import annotations

import pytest
import torch

from tests.cases.harness import check, compile_and_record


def rotated(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def uneven(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One of the pieces is never used, one is empty."""
    one, _, two, none = x.split((1, 2, x.shape[0] - 3, 0), 0)
    return one * 2, two.exp(), none.sin()


def unbound(x: torch.Tensor) -> torch.Tensor:
    one, two, three = x.unflatten(-1, (3, -1)).unbind(-2)
    return one * two - three


def last_is_shorter(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([piece.cumsum(1) for piece in x.split(4, 1)], 1)


@pytest.mark.parametrize("shape", [(5, 6), (4, 18)])
@pytest.mark.parametrize("function", [rotated, uneven, unbound, last_is_shorter])
def test_pieces_are_boxes(function: object, shape: tuple[int, ...]) -> None:
    check(function, lambda: (torch.randn(shape),))  # type: ignore[arg-type]
    record = compile_and_record(function, torch.randn(shape))  # type: ignore[arg-type]
    assert "read_box" in record.after.text
    assert not any(word in record.after.text for word in ("split", "unbind", "getitem"))


def padded_by_nothing(x: torch.Tensor) -> torch.Tensor:
    """As code pads that rounds a length up which is round already."""
    return torch.nn.functional.pad(x.sin(), (0, 0, 0, 0)) + torch.nn.functional.pad(x, (0, -x.shape[1] % x.shape[1]))


def test_padding_by_nothing_is_nothing() -> None:
    check(padded_by_nothing, lambda: (torch.randn(3, 5),))
    assert "pad" not in compile_and_record(padded_by_nothing, torch.randn(3, 5)).after.text
