"""Where torch_tpu is not installed: its runtime says so, with the command that installs it."""

from __future__ import annotations

import pytest
import torch

from tpu_lowering import errors, releases
from tpu_lowering.kernels import tpu_tensors


def test_torch_tpu_is_missing() -> None:
    with pytest.raises(errors.TpuLoweringError) as caught:
        tpu_tensors.device_kind.__wrapped__()
    found = caught.value.refusal
    assert (found.code, found.remedy) == ("TL105", "pip install 'tpu_lowering[tpu]'")
    assert "torch_tpu (not installed)" in found.subject
    assert "expected" in found.reason and "torch_tpu 0.2.0" in found.reason and "device tpu" in found.reason


def test_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {**releases.RELEASES["torch_tpu"], "torch": "2.13.0+cpu", "torch_tpu": "0.1.1", "libtpu": "0.0.40"}
    monkeypatch.setattr(releases, "version", installed.get)
    with pytest.raises(errors.TpuLoweringError) as caught:
        releases.check("torch_tpu", "tpu")
    assert str(caught.value) == "\n".join(
        (
            "[TL105] package missing or outside the tested versions: torch_tpu 0.1.1, libtpu 0.0.40",
            "  why  expected torch_tpu 0.2.0, libtpu 0.0.52 for tensors on device tpu, got torch_tpu 0.1.1, libtpu 0.0.40",
            "  fix  pip install 'tpu_lowering[tpu]'",
        )
    )


def test_tensors_are_nobodys() -> None:
    assert not tpu_tensors.are_real([torch.ones(2), torch.ones(2, device="meta")])
