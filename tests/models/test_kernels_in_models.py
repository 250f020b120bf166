"""Models with every kernel that can be generated: against eager on the CPU, and as programs for a TPU."""

from __future__ import annotations

import pytest
import torch
from model_training import assert_equal, both, train

from bench import against_xla
from bench.zoo import MODELS
from tpu_lowering.runtime.aot.targets import Target

DEFAULT = ("llama", "gpt2", "bert")
SUITE = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.large) for name in MODELS]


@pytest.mark.parametrize("name", SUITE)
def test_training_with_kernels_equals_eager(name: str) -> None:
    torch.manual_seed(0)
    chosen = MODELS[name]
    (eager, mine), inputs = both(chosen.build), chosen.inputs()
    run = torch.compile(chosen.step, backend="helion_tpu", fullgraph=True, options={"fuse": "always"})
    assert_equal(train(mine, inputs, run), train(eager, inputs, chosen.step))


@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_programs_for_a_tpu_are_made(name: str, training: bool) -> None:
    """Estimates choose what is a kernel; the sizes are toys, so that some of them are odd."""
    made = against_xla.of_zoo(name, training)(Target.of("tpu7x"), "tpu")
    assert len(made) == 1 + training and all(one.stablehlo for one in made)
