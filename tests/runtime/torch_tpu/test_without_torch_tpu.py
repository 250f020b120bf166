"""Where torch_tpu is not installed: its runtime says so, with the command that installs it."""

from __future__ import annotations

import pytest
import torch

from tpu_lowering import errors
from tpu_lowering.kernels import tpu_tensors


def test_torch_tpu_is_missing() -> None:
    with pytest.raises(errors.TpuLoweringError) as caught:
        tpu_tensors.chip.__wrapped__()
    assert str(caught.value) == "\n".join(
        (
            "[TL105] package missing or outside the tested versions: torch_tpu (not installed)",
            "  why  expected torch_tpu 0.2.0 for tensors on device tpu, got none",
            "  fix  pip install torch_tpu==0.2.0 libtpu==0.0.52",
        )
    )


def test_tensors_are_nobodys() -> None:
    assert not tpu_tensors.are_real([torch.ones(2), torch.ones(2, device="meta")])
