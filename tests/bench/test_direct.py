"""The hand-written kernels compute what their Helion counterparts do, in Pallas's interpreter."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bench.kernels import KERNELS, KernelCase
from bench.kernels.direct import DIRECT


def test_table_has_every_kernel() -> None:
    assert tuple(DIRECT) == tuple(case.name for case in KERNELS)


@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case.name)
def test_computes_the_reference(case: KernelCase) -> None:
    inputs = case.example(True)
    result = DIRECT[case.name](*(jnp.asarray(value.numpy()) for value in inputs), interpret=True)
    tolerance = case.tolerance[torch.float32]
    expected = case.reference(*inputs).numpy()
    np.testing.assert_allclose(np.asarray(result), expected, rtol=tolerance.relative, atol=tolerance.absolute)
