"""Training: one forward and one backward program, recomputation, mixed precision, optimisers, accumulation."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as recomputing

from tests.cases.harness import Record, compare, compiled
from tests.control_flow.training import backward, check_gradients
from tpu_lowering import explain
from tpu_lowering.backend import helion_tpu

Tensor = torch.Tensor


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


def test_forward_and_backward_are_one_program_each() -> None:
    model, x = mlp(), torch.randn(5, 4)
    report = explain(lambda x: model(x).square().sum(), x.requires_grad_())
    assert [name.partition("_")[0] for name in report.programs] == ["forward", "backward"]
    assert report.programs_after == 2


# Recomputation ----------------------------------------------------------------------------------------
def block(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight).sin().exp() @ weight


def keep_products(_: Any, operator: Any, *args: Any, **kwargs: Any) -> recomputing.CheckpointPolicy:
    kept = operator == torch.ops.aten.mm.default
    return recomputing.CheckpointPolicy.MUST_SAVE if kept else recomputing.CheckpointPolicy.PREFER_RECOMPUTE


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return recomputing.checkpoint(block, x, weight, use_reentrant=False)


def selective(x: Tensor, weight: Tensor) -> Tensor:
    contexts = functools.partial(recomputing.create_selective_checkpoint_contexts, keep_products)
    return recomputing.checkpoint(block, x, weight, use_reentrant=False, context_fn=contexts)


def nested(x: Tensor, weight: Tensor) -> Tensor:
    return recomputing.checkpoint(lambda x: plain(x, weight).tanh(), x, use_reentrant=False)


@pytest.mark.parametrize(
    "function, products", [(plain, 4), (selective, 2), (nested, None)], ids=["all", "some", "nested"]
)
def test_activation_checkpointing(function: Callable[..., Tensor], products: int | None) -> None:
    """The backward has the products of the gradient, and those of the forward that it computes again.

    ``x @ weight`` is computed again where nothing is kept, and so is what follows from it; with the policy
    products come as arguments. The gradient of two products takes four.
    """
    record = check_gradients(function, torch.randn(4, 3), torch.randn(3, 3))
    text = record.graphs["backward"].at("captured").text
    assert "aten.sin" in text or "aten.cos" in text
    if products is not None:
        again = text.count("aten.mm.default(") - 4
        assert (again > 0) is (function is plain), text


def test_regions_compiled_once_are_inlined() -> None:
    @torch.compiler.nested_compile_region
    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight).sin() + torch.tensor([1.0, 2.0, 3.0])

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return layer(layer(layer(x, weight), weight * 2), weight)

    record = check_gradients(function, torch.randn(4, 3), torch.randn(3, 3))
    assert "invoke_subgraph" not in record.graphs["forward"].at("specialise").text


# Mixed precision --------------------------------------------------------------------------------------
def test_autocast() -> None:
    """bfloat16 products inside, float32 parameters and gradients outside; as a region and around the call."""
    model = mlp()
    eager, own, x = copy.deepcopy(model), copy.deepcopy(model), torch.randn(5, 4)

    def step(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = model(x)
            with torch.autocast("cpu", enabled=False):
                whole = result.float() @ torch.ones(3, 2)
        return whole.square().sum() + result.float().sum()

    record = Record()
    # Not verified: eager's layer_norm keeps float32 statistics where its type inference says bfloat16, and its
    # backward, which the reference interpreter runs, takes only what eager keeps.
    wanted, result = step(eager, x), compiled(step, record, verify=False)(own, x)
    wanted.backward()
    result.backward()
    narrow = {"rtol": 2**-6, "atol": 2**-6}  # bfloat16 keeps 8 bits
    torch.testing.assert_close(result, wanted, **narrow)
    for mine, theirs in zip(gradients(own), gradients(eager), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-6, atol=2**-4)
    assert "bf16[5, 8]" in record.graphs["forward"].source and "bf16[" in record.graphs["backward"].source
    run = compiled(own, Record(), verify=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, eager_inside = run(x), eager(x)
    assert inside.dtype == eager_inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside, eager_inside, **narrow)
    compare(run(x), eager(x))  # outside again: float32


def test_scaled_loss() -> None:
    """``GradScaler`` on the CPU: gradients are scaled, unscaled and checked for infinities around our programs."""

    def train(model: nn.Module, call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in torch.arange(40.0).view(2, 5, 4) / 40:
            optimiser.zero_grad()
            scaler.scale(call(x).square().sum()).backward()
            scaler.step(optimiser)
            scaler.update()
        return [parameter.detach() for parameter in model.parameters()]

    own, eager = mlp(), mlp()
    compare(train(own, compiled(own, Record())), train(eager, eager))


# Accumulating and keeping gradients -------------------------------------------------------------------
def test_gradient_accumulation() -> None:
    own, eager = mlp(), mlp()
    run = compiled(own, Record())
    for _ in range(3):
        x = torch.randn(5, 4)
        run(x).square().sum().backward()
        eager(x).square().sum().backward()
    compare(gradients(own), gradients(eager))


def test_backward_through_one_forward_twice() -> None:
    own, eager, x = mlp(), mlp(), torch.randn(5, 4)
    result, wanted = compiled(own, Record())(x), eager(x)
    for value in (result, wanted):
        loss = value.square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    compare(gradients(own), gradients(eager))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.sum().backward()


def test_two_results_backward_one_after_the_other() -> None:
    x = torch.randn(3, requires_grad=True)
    first, second = compiled(lambda x: (x.sin(), x * x), Record())(x)
    compare(torch.autograd.grad(first.sum(), x, retain_graph=True)[0], x.cos())
    compare(torch.autograd.grad(second.sum(), x)[0], 2 * x)


# Optimisers -------------------------------------------------------------------------------------------
def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def test_optimiser_step_is_one_program_that_writes_in_place() -> None:
    own, eager = mlp(), mlp()
    ours, theirs = sgd(own), sgd(eager)
    storages = [parameter.untyped_storage().data_ptr() for parameter in own.parameters()]
    record = Record()
    torch._dynamo.reset()
    step = torch.compile(ours.step, backend=functools.partial(helion_tpu, observers=[record]))
    states: list[int] = []
    for turn in range(3):
        x = torch.randn(5, 4)
        for model in (own, eager):
            model.zero_grad()
            backward(model(x))
        step()
        theirs.step()
        pointers = [value.data_ptr() for state in ours.state.values() for value in state.values() if value is not None]
        assert turn < 2 or pointers == states
        states = pointers
    compare(list(own.parameters()), list(eager.parameters()))
    compare([dict(state) for state in ours.state.values()], [dict(state) for state in theirs.state.values()], "states")
    assert [parameter.untyped_storage().data_ptr() for parameter in own.parameters()] == storages
    # "graph": captured again once there are momenta
    assert all(name.startswith(("inference", "graph")) for name in record.graphs)


def test_whole_step_with_the_optimiser_inside() -> None:
    """Forward, backward and optimiser in one function: a graph break at ``backward``, programs around it."""
    own, eager = mlp(), mlp()
    optimisers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (own, eager)]

    def step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor) -> Tensor:
        optimiser.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimiser.step()
        return loss

    torch._dynamo.reset()
    run = torch.compile(step, backend="helion_tpu")
    for _ in range(3):
        x = torch.randn(5, 4)
        compare(run(own, optimisers[0], x), step(eager, optimisers[1], x))
    compare(list(own.parameters()), list(eager.parameters()))
