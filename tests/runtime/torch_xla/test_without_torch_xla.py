"""Where torch_xla is not installed: its runtime says so, with the command that installs it."""

import pytest

from tpu_lowering import errors, releases


def test_torch_xla_is_missing() -> None:
    with pytest.raises(errors.TpuLoweringError) as caught:
        releases.check("torch_xla", "xla")
    found = caught.value.refusal
    assert (found.code, found.subject) == ("TL105", "torch_xla (not installed)")
    assert found.reason == "expected torch_xla 2.9.0 for tensors on device xla, got none"
    assert found.remedy == "pip install torch==2.9.0 'torch_xla[pallas]==2.9.0' jax==0.7.1 jaxlib==0.7.1"
