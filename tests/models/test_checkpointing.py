"""Activation checkpointing: what is recomputed in the backward graph, and gradients of eager."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bench.zoo import MODELS
from tests.models.model_training import assert_equal, both, train
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir.programs import Program

aten = torch.ops.aten


class Collected:
    """How often each program calls an operator."""

    def __init__(self) -> None:
        self.programs: dict[str, list[Any]] = {}

    def stage(self, program: str, stage: str, module: torch.fx.GraphModule, seconds: float) -> None:
        if stage == "captured":
            self.programs[program.partition("_")[0]] = [node.target for node in module.graph.nodes]

    def acted(self, program: str, name: str, actions: Any) -> None: ...

    def compiled(self, program: Program, source: Any) -> None: ...


class Stack(nn.Module):
    """Blocks whose activations are kept, or recomputed."""

    def __init__(self, through: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh()) for _ in range(3)]
        self.blocks, self.through = nn.ModuleList(blocks), through

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = self.through(block, x)
        return x.square().mean()


def keep(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return block(x)


def recompute(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(block, x, use_reentrant=False)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    matmuls = (aten.mm.default, aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if operator in matmuls else CheckpointPolicy.MUST_RECOMPUTE


def recompute_pointwise(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


# How many tanh and addmm the backward graph recomputes: the last block's own result is what it starts from.
RECOMPUTED = {
    "keep": (keep, False, False),
    "all": (recompute, True, True),
    "selective": (recompute_pointwise, True, False),
}


@pytest.mark.parametrize("through, tanh, matmul", RECOMPUTED.values(), ids=RECOMPUTED)
def test_checkpoint_recomputes_and_equals_eager(through: Callable[..., Any], tanh: bool, matmul: bool) -> None:
    torch.manual_seed(0)
    model = Stack(through)
    x = torch.randn(4, 16, requires_grad=True)
    expected = torch.autograd.grad(model(x), [x, *model.parameters()])
    seen = Collected()
    run = torch.compile(model, backend=functools.partial(helion_tpu, observers=(seen,)), fullgraph=True)
    found = torch.autograd.grad(run(x), [x, *model.parameters()])
    torch.testing.assert_close(found, expected)
    backward = seen.programs["backward"]
    assert (aten.tanh.default in backward) == tanh
    assert (aten.addmm.default in backward) == matmul


# From 5.25 a layer of transformers sets a variable of its own while it runs, and puts it back.
@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
@pytest.mark.parametrize("name", ["llama", pytest.param("bert", marks=pytest.mark.large)])
def test_gradient_checkpointing_of_transformers(name: str) -> None:
    torch.manual_seed(0)
    chosen = MODELS[name]
    (eager, mine), inputs = both(chosen.build), chosen.inputs()
    for model in (eager, mine):
        model.config.use_cache = False  # else BERT logs that it will be, which Dynamo does not trace
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    run = torch.compile(chosen.step, backend="helion_tpu", fullgraph=True)
    assert_equal(train(mine, inputs, run), train(eager, inputs, chosen.step))
