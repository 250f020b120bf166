"""Checkpointed regions that are computed again late: what is saved, what waits, values against eager, and memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import checkpoint

from tests.capture.test_recompute_rows import Seen, compiled
from tpu_lowering import aot
from tpu_lowering.capture import partition
from tpu_lowering.capture.recompute_late import REGION, recompute_late
from tpu_lowering.ir import chips
from tpu_lowering.ir.materialized import together

V5E = chips.find("v5e")


class Layer(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(width, 4 * width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(F.silu(self.gate(F.rms_norm(x, x.shape[-1:]))) * self.up(x))
        return self.dropout(x)


class Model(nn.Module):
    """Checkpointed layers, and a norm and a head behind them."""

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, dropout) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = x.sin()
        for layer in self.layers:
            x = checkpoint.checkpoint(layer, x, use_reentrant=False)  # type: ignore[assignment]
        return F.cross_entropy(self.head(F.rms_norm(x, x.shape[-1:])).float(), labels)


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[fx.Graph]:
    """Backwards, partitioned as those of a TPU."""
    torch._dynamo.reset()
    found, repeat = list[fx.Graph](), partition.repeat_draws

    def repeat_draws(joint: Any, forward: Any, backward: Any, results: int) -> Any:
        assert recompute_late(backward.graph)
        backward.recompile()
        found.append(backward.graph)
        return repeat(joint, forward, backward, results)

    monkeypatch.setattr(partition, "repeat_draws", repeat_draws)
    return found


def step(model: nn.Module, run: Any, x: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    loss = run(x, labels)
    loss.backward()
    return [loss.detach(), *(one.grad for one in (x, *model.parameters()) if one.grad is not None)]


@pytest.mark.parametrize("width", [8, 12])
def test_a_step_is_eager_s(width: int, backwards: list[fx.Graph]) -> None:
    torch.manual_seed(0)
    model, x, labels = Model(width, 20), torch.randn(6, width), torch.arange(6)
    theirs = copy.deepcopy(model)
    expected = step(theirs, theirs, x, labels)
    found = step(model, compiled(model), x, labels)
    assert len(found) == len(expected) == 2 + len(list(model.parameters()))
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its)
    assert backwards


def test_a_region_waits_for_its_gradient(backwards: list[fx.Graph]) -> None:
    model = Model(8, 20)
    step(model, compiled(model), torch.randn(6, 8), torch.arange(6))
    (graph,) = backwards
    both = graph.find_nodes(op="call_function", target=together)
    assert len(both) == 2
    for node in both:
        value, gradient = node.args
        assert value.op == "placeholder" and gradient.op == "call_function"
        assert not any(REGION in user.meta and user is not node for user in value.users)
    graph.lint()


def test_the_last_region_s_result_is_saved() -> None:
    """As eager saves it for the norm behind it. So are the input, what regions begin with, and what the head reads."""
    torch._dynamo.reset()
    model, seen = Model(8, 20), Seen()
    step(model, compiled(model, seen), torch.randn(6, 8), torch.arange(6))
    assert len(seen.bytes_of(6 * 8)) == 5
    assert not seen.bytes_of(6 * 32)


def test_a_chip_holds_no_layer_beside_the_gradient_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = list[int]()
    for late in (True, False):
        if not late:
            monkeypatch.setattr(partition, "recompute_late", lambda graph: [])
        model = Model(1024, 16384).bfloat16()
        given = torch.empty(8192, 1024, dtype=torch.bfloat16, requires_grad=True), torch.zeros(8192, dtype=torch.int64)
        _, backward = aot.capture_step(model, given, {}, V5E, {}, ())
        peaks.append(aot.compile_captured(backward, V5E, True, simulate=False).peak_bytes)
    assert peaks[0] < 0.95 * peaks[1]
