"""Buffers that a forward writes (running statistics), and autocast regions inside a compiled function."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

STEPS = 3
WIDTH = 4

# Not momentum=None: the average's factor is read off a tensor, which Dynamo refuses with any backend.
NORMS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "rows": (lambda: nn.BatchNorm1d(WIDTH), 0),
    "images": (lambda: nn.BatchNorm2d(WIDTH, momentum=0.3, eps=1e-3), 2),
    "volumes": (lambda: nn.BatchNorm3d(WIDTH, affine=False), 3),
    "without statistics": (lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False), 2),
    "instances": (lambda: nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True), 2),
}


@pytest.mark.sweep
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("build, dims", NORMS.values(), ids=NORMS)
def test_running_statistics_equal_eager(build: Callable[[], nn.Module], dims: int, training: bool) -> None:
    torch.manual_seed(0)
    eager = build().train(training)
    mine = copy.deepcopy(eager)
    run = torch.compile(mine, backend="helion_tpu", fullgraph=True)
    for step in range(STEPS):
        x = torch.randn(3 + step, WIDTH, *[5] * dims) * 2 + 1
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        results = [run(leaves[0]), eager(leaves[1])]
        gradient = torch.randn_like(x)
        for result in results:
            result.backward(gradient)
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
        torch.testing.assert_close(mine.state_dict(), eager.state_dict())
    if training and "running_mean" in dict(eager.named_buffers()):
        assert not torch.equal(mine.running_mean, torch.zeros(WIDTH)), "expected the statistics to be written"


def mixed(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Products in bfloat16, one in float32 in between, a sum that autocast keeps in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        narrow = x @ weight
        with torch.autocast("cpu", enabled=False):
            wide = x @ weight
        return narrow, wide, narrow.softmax(-1), nn.functional.mse_loss(narrow @ weight, wide @ weight)


def test_autocast_inside_a_function_equals_eager() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, 16), torch.randn(16, 16) / 4

    def run(function: Callable[..., tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        results = function(*leaves)
        return (*results, *torch.autograd.grad(sum(result.float().sum() for result in results), leaves))

    found, expected = run(torch.compile(mixed, backend="helion_tpu", fullgraph=True)), run(mixed)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    torch.testing.assert_close(found[:3], expected[:3])
    for mine, theirs in zip(found[3:], expected[3:], strict=True):  # float32, out of values rounded to bfloat16
        torch.testing.assert_close(mine, theirs, rtol=1.6e-2, atol=1.6e-2)
