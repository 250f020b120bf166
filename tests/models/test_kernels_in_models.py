"""Models with every kernel that can be generated: against eager on the CPU, and as programs for a TPU."""

from __future__ import annotations

import pytest

from bench import against_xla
from bench.zoo import MODELS
from tests.models.model_training import assert_trains_as_eager
from tpu_lowering.ir import chips

DEFAULT = ("llama", "gpt2", "bert")
SUITE = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.large) for name in MODELS]


@pytest.mark.sweep
@pytest.mark.parametrize("name", SUITE)
def test_training_with_kernels_equals_eager(name: str) -> None:
    assert_trains_as_eager(MODELS[name], fuse="always")


@pytest.mark.sweep
@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_programs_for_a_tpu_are_made(name: str, training: bool) -> None:
    """Estimates choose what is a kernel; the sizes are toys, so that some of them are odd."""
    made = against_xla.of_zoo(name, training)(chips.find("tpu7x"), "tpu")
    assert len(made) == 1 + training and all(one.stablehlo for one in made)
