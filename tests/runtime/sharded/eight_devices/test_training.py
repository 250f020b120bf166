"""A model on meshes of several shapes learns what eager on one device learns."""

from __future__ import annotations

import copy
import pathlib
import re
from collections import Counter
from typing import Any

import jax
import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.runtime.sharded.eight_devices.conftest import sharded
from tests.runtime.sharded.llama import SHARDINGS, Llama, batch
from tpu_lowering.ir.shardings import constrain

MESHES = ({"data": 4, "model": 2}, {"data": 8, "model": 1}, {"data": 2, "model": 2})
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def twins(dtype: torch.dtype = torch.float32, layers: int = 2) -> tuple[Llama, Llama]:
    torch.manual_seed(0)
    model = Llama(layers).to(dtype)
    return model, copy.deepcopy(model)


def collectives(program: Any) -> Counter[str]:
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    return Counter(re.findall(rf"= \S+ ({kinds})\(", program.compiled.as_text()))


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "x".join(map(str, mesh.values())))
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_loss_and_gradients(mesh: Any, dtype: torch.dtype) -> None:
    model, twin = twins(dtype)
    losses = [sharded(model, SHARDINGS, mesh)(*batch()), twin(*batch())]
    for loss in losses:
        loss.backward()
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(*losses, rtol=tolerance, atol=tolerance)
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    assert len(gradients) == 21
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=tolerance, atol=tolerance)
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_three_steps_and_a_checkpoint(tmp_path: pathlib.Path) -> None:
    model, twin = twins()
    run = sharded(model, SHARDINGS)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (model, twin)]
    for step in range(3):
        losses = [forward(*batch(step)) for forward in (run, twin)]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-4)

    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = Llama()
    loaded = {"model": other.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(loaded["model"])
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
    torch.testing.assert_close(sharded(other, SHARDINGS)(*batch(3)), twin(*batch(3)), rtol=1e-4, atol=1e-4)
    model.load_state_dict(loaded["model"])  # copies into parameters that are on the devices
    torch.testing.assert_close(run(*batch(3)), twin(*batch(3)), rtol=1e-4, atol=1e-4)


def test_what_the_programs_are(programs: Any, moves: Any) -> None:
    """Parameters lie as the table says, results of modules and gradients are constrained, activations stay split."""
    model, _ = twins()
    loss = sharded(model, SHARDINGS)(*batch())
    assert moves.of(loss.backward) == 1  # the gradient of the loss
    forward, backward = programs
    text = forward.compiled.as_text()
    assert "f32[2,16,32]" in text and "f32[8,16,32]" not in text  # two of eight rows on a device
    assert "all-gather" not in collectives(forward) and collectives(forward)["all-reduce"] > 0
    constraints = [node for node in forward.program.module.graph.nodes if node.target is constrain]
    assert len(constraints) == 2  # layers.0.mlp and layers.1.mlp
    gradients = [node for node in backward.program.module.graph.nodes if node.target is constrain]
    assert len(gradients) == 16  # of the parameters that the table names
    results = dict(zip(backward.program.output_nodes(), backward.compiled.output_shardings, strict=True))
    P = jax.sharding.PartitionSpec
    assert Counter(results[node].spec for node in gradients) == {P("model"): 12, P(None, "model"): 4}


def test_inference_and_other_lengths() -> None:
    model, twin = twins()
    run = torch.compile(
        model, backend="helion_tpu", fullgraph=True, dynamic=True,
        options={"mesh": {"data": 4, "model": 2}, "shardings": SHARDINGS, "device": "cpu"},
    )  # fmt: skip
    with torch.no_grad():
        for length in (16, 8, 12):
            ids, labels = (each[:, :length].contiguous() for each in batch())
            torch.testing.assert_close(run(ids, labels), twin(ids, labels), rtol=1e-5, atol=1e-5)


def test_a_checkpointed_layer_is_constrained_too(programs: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    model, twin = twins(layers=1)
    layer = model.layers[0]

    def step(model: Llama, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = checkpoint(layer, model.embed(input_ids), use_reentrant=False)
        return torch.nn.functional.cross_entropy(model.lm_head(model.norm(x)).flatten(0, 1), labels.flatten())

    table = {"input_ids": ("data",), "labels": ("data",), "mlp": ("data", None, "model"), "embed.weight": ("model",)}
    loss, expected = sharded(step, table)(model, *batch()), twin(*batch())
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.embed.weight.grad, twin.embed.weight.grad, rtol=1e-5, atol=1e-5)
    (constraint,) = [node for node in programs[0].program.module.graph.nodes if node.target is constrain]
    assert constraint.args[1] == (("data",), (), ("model",))
