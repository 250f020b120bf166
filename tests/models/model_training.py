"""One training step of a model of the suite, and what is compared of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.zoo import Inputs, Model

Step = Callable[[nn.Module, Inputs], tuple[torch.Tensor, torch.Tensor]]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose first step is a smooth function of the gradients: with the usual eps of 1e-8 it is their sign,
    also of those that are zero but for rounding."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


def train(model: nn.Module, inputs: Inputs, step: Step, autocast: bool = False) -> dict[str, torch.Tensor]:
    """Loss, result, gradients, then parameters and buffers after an optimiser step, and the loss after it."""

    def scope() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    optimizer = adamw(model)
    with scope():
        loss, result = step(model, inputs)
    loss.backward()
    found = {"loss": loss.detach(), "result": result.detach()}
    found |= {f"gradient of {k}": v.grad.clone() for k, v in model.named_parameters() if v.grad is not None}
    optimizer.step()
    found |= {f"parameter {k}": v.detach().clone() for k, v in model.named_parameters()}
    with scope():
        found["loss after"] = step(model, inputs)[0].detach()
    return found | {f"buffer {k}": v.detach().clone() for k, v in model.named_buffers()}


def both(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two models with the same random weights."""
    model = build()
    return model, copy.deepcopy(model)


def assert_trains_as_eager(chosen: Model, **options: Any) -> None:
    """Compares all that ``train`` says of a model, compiled whole with options, with what it says in eager."""
    torch.manual_seed(0)
    (eager, mine), inputs = both(chosen.build), chosen.inputs()
    run = torch.compile(chosen.step, backend="helion_tpu", fullgraph=True, options=options)
    assert_equal(train(mine, inputs, run), train(eager, inputs, chosen.step))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compares with torch's own tolerance for each dtype."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}")
