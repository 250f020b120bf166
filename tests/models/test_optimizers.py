"""Optimiser steps are compiled: parameters and states are written back, step after step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}
FORMS = {"foreach": {"foreach": True}, "one by one": {"foreach": False}}
STEPS = 4


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    return [dict(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]


def optimise(kind: str, form: str, compiled: bool) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]], int]:
    """Parameters and states after some steps, and the number of graphs that were compiled."""
    model, graphs = build(), []
    optimizer = OPTIMIZERS[kind](model.parameters())
    for group in optimizer.param_groups:
        group.update(FORMS[form])

    def counting(module: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., object]:
        from tpu_lowering.backend import helion_tpu

        graphs.append(module)
        return helion_tpu(module, examples)

    # Not fullgraph: torch breaks the graph on purpose between the profiler's hook and the step itself.
    step = torch.compile(optimizer.step, backend=counting) if compiled else optimizer.step
    generator = torch.Generator().manual_seed(1)
    addresses = [p.data_ptr() for p in model.parameters()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(5, 6, generator=generator)).square().sum().backward()
        step()
    assert addresses == [p.data_ptr() for p in model.parameters()], "parameters moved"
    return [p.detach() for p in model.parameters()], states(optimizer), len(graphs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_equal_eager(kind: str, form: str) -> None:
    parameters, kept, _ = optimise(kind, form, compiled=False)
    mine, my_kept, graphs = optimise(kind, form, compiled=True)
    torch.testing.assert_close(mine, parameters)
    torch.testing.assert_close(my_kept, kept)
    assert 1 <= graphs <= 2, f"expected a graph for the first step and one for all others, got {graphs}"


def test_a_whole_training_step_is_compiled() -> None:
    """Forward, backward and step in one function, with the graph breaks that torch makes at backward."""

    def losses(compiled: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def step(x: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = torch.compile(step, backend="helion_tpu") if compiled else step
        generator = torch.Generator().manual_seed(1)
        found = [run(torch.randn(5, 6, generator=generator)) for _ in range(STEPS)]
        return found, [p.detach() for p in model.parameters()]

    torch.testing.assert_close(losses(compiled=True), losses(compiled=False))
