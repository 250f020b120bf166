"""The case of ``child`` that launches a Helion kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helion
import helion.language as hl
import torch

FACTOR = 1


@helion.kernel(config=helion.Config(block_sizes=[8, 8]), static_shapes=True, backend="pallas")
def scale_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] * FACTOR


@helion.kernel(config=helion.Config(block_sizes=[8, 8]), static_shapes=True, backend="pallas")
def negate_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = -x[tile]


def launch(run: Callable[..., Any]) -> list[torch.Tensor]:
    """A Helion kernel that reads a global."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        scale_into(x, out)
        return out + 1

    return [run(function)(torch.randn(8, 8))]
