"""The model suite against eager: forward, loss, backward, an AdamW step and the loss after it.

All of them compile with ``fullgraph=True``.
"""

from __future__ import annotations

import pytest
import torch

from bench.zoo import MODELS
from tests.models.model_training import assert_trains_as_eager, both, train

# One of each family of operators; the others are `large`.
DEFAULT = ("llama", "mixtral", "bert", "deberta_v2", "t5", "vit", "resnet", "unet")
SUITE = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.large) for name in MODELS]
AUTOCAST = ["llama", pytest.param("bert", marks=pytest.mark.large), "resnet"]

# Narrow floats: the error against float32 may be this many times eager's worst on any tensor of the same kind, and
# one rounding to bfloat16 more: of a single number, such as the loss, eager may come out right by luck.
SLACK = 2.0
ROUNDING = torch.finfo(torch.bfloat16).eps / 2
TINY = 1e-30  # the norm of a gradient that is all zeros


@pytest.mark.sweep
@pytest.mark.parametrize("name", SUITE)
def test_training_equals_eager(name: str) -> None:
    assert_trains_as_eager(MODELS[name])


@pytest.mark.parametrize(
    "name", [name if name == "resnet" else pytest.param(name, marks=pytest.mark.large) for name in MODELS]
)
def test_inference_equals_eager(name: str) -> None:
    """In evaluation mode, every pass verified."""
    torch.manual_seed(0)
    chosen = MODELS[name]
    model, inputs = chosen.build().eval(), chosen.inputs()
    run = torch.compile(chosen.step, backend="helion_tpu", fullgraph=True, options={"verify": True})
    with torch.no_grad():
        torch.testing.assert_close(run(model, inputs), chosen.step(model, inputs))


@pytest.mark.sweep
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_is_as_exact_as_eager(name: str) -> None:
    """bfloat16 autocast. The yardstick is the same step in float32, without autocast."""
    torch.manual_seed(0)
    chosen = MODELS[name]
    (exact, eager), inputs = both(chosen.build), chosen.inputs()
    mine = both(lambda: eager)[1]
    run = torch.compile(chosen.step, backend="helion_tpu", fullgraph=True)
    truth = train(exact, inputs, chosen.step)
    theirs = train(eager, inputs, chosen.step, autocast=True)
    ours = train(mine, inputs, run, autocast=True)
    assert ours.keys() == theirs.keys() == truth.keys()
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
    assert ours["result"].dtype == torch.bfloat16
    worst: dict[str, float] = {}
    for key, error in _errors(theirs, truth).items():
        kind = key.split()[0]
        worst[kind] = max(worst.get(kind, 0.0), error)
    assert worst["result"] > 1e-4, "expected the rounding of bfloat16 in eager's result"
    for key, error in _errors(ours, truth).items():
        allowed = SLACK * worst[key.split()[0]] + ROUNDING
        assert error <= allowed, f"{key}: relative error {error:.1e}, allowed {allowed:.1e}"


def _errors(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """The relative error of each tensor, by the Euclidean norm."""
    return {
        key: float((found[key].double() - exact.double()).norm() / exact.double().norm().clamp(min=TINY))
        for key, exact in truth.items()
    }
