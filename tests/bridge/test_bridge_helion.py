"""``passes.apply`` on calls of Helion kernels, which run in Pallas's interpreter here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.bridge.bridge_backend import aot, made_in
from tpu_lowering import passes

helion = pytest.importorskip("helion", reason="needs Helion")
import helion.language as hl  # noqa: E402

CONFIG = {"config": helion.Config(block_sizes=[8, 128]), "static_shapes": True, "backend": "pallas"}


@helion.kernel(**CONFIG, pallas_interpret=True)
def exp_into(x: Tensor, out: Tensor, scale: float) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = torch.exp(x[tile] * scale)


@helion.kernel(**CONFIG, pallas_interpret=True)
def update(x: Tensor, cache: Tensor, out: Tensor) -> Tensor:
    """Writes an input and a result, and has a result of its own."""
    own = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        new = cache[tile] + x[tile]
        cache[tile] = new
        out[tile] = new * 2
        own[tile] = x[tile] - 1
    return own


def plain(x: Tensor, _: Tensor) -> Tensor:
    out = torch.empty_like(x)
    exp_into(x * 2, out, 0.5)
    return out + 1


def two_calls(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    a, b = torch.empty_like(x), torch.empty_like(x)
    exp_into(x, a, 1.0)
    exp_into(x, b, 0.5)
    return a, b


def mixed(x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x)
    own = update(x, cache, out)
    return own, out


def filled(x: Tensor, _: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    exp_into(x, out, 1.0)
    return out


@pytest.mark.sweep
@pytest.mark.parametrize(("model", "left"), [(plain, 0), (two_calls, 0), (mixed, 0), (filled, 1)])
def test_helion_kernels(model: Callable[..., Any], left: int) -> None:
    torch._dynamo.reset()
    after: list[torch.fx.GraphModule] = []
    run = torch.compile(model, backend=aot(passes.apply, after=after), fullgraph=True)
    x = torch.randn(16, 128)
    mine, theirs = torch.ones(16, 128), torch.ones(16, 128)
    for _ in range(2):
        torch.testing.assert_close(run(x, mine), model(x, theirs))
        torch.testing.assert_close(mine, theirs)
    assert made_in(after[0].graph) == left
    assert ("helion_kernel_wrapper" in after[0].code) == bool(left)
