"""Statistics of images of bfloat16 in one pass: as exact as two, and which images have them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.lower.evaluate import capture, evaluator_of, to_jax
from tpu_lowering import aot, compat
from tpu_lowering.ir import chips
from tpu_lowering.lower.aten.moments import channel_moments, group_moments, row_shape

SHAPES = [(2, 8, 7, 7), (3, 8, 56, 56), (2, 8, 14, 14), (1, 8, 28, 112), (2, 8, 5, 8, 8), (2, 8, 250), (4, 8, 24, 3)]


def images(shape: tuple[int, ...], mean: float, deviation: float = 1.0) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(mean + deviation * rng.standard_normal(shape), jnp.bfloat16)


def exact(x: jax.Array, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    wide = np.asarray(x.astype(jnp.float32)).astype(np.float64)
    return wide.mean(axes), wide.var(axes)


@pytest.mark.parametrize("mean", [0.0, -3.0, 100.0, 1000.0, 30000.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_variances_are_exact_far_from_zero(shape: tuple[int, ...], mean: float) -> None:
    x = images(shape, mean)
    slack: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-6 + mean**2 * 2.0**-46}  # two passes round the mean too
    assert row_shape(x) is not None
    for found, wanted in zip(channel_moments(x), exact(x, (0, *range(2, x.ndim))), strict=True):
        np.testing.assert_allclose(np.asarray(found).ravel(), wanted, **slack)
    groups = x.reshape(shape[0], 4, -1)
    for found, wanted in zip(group_moments(x, 4), exact(groups, (2,)), strict=True):
        np.testing.assert_allclose(np.asarray(found)[..., 0, 0], wanted, **slack)


@pytest.mark.parametrize("value", [0.0, 1.0, -257.0, 1e30])
def test_one_value_that_differs_from_all_others(value: float) -> None:
    """By one unit in its last place, or not at all: no variance is lost, and none is made up."""
    same = jnp.full((2, 2, 16, 16), value, jnp.bfloat16)
    other = same.at[0, 1, 3, 4].multiply(1 + 2**-7)
    if value < 1e18:  # squares of larger ones are infinite in float32
        np.testing.assert_allclose(np.asarray(channel_moments(same)[1]), 0, atol=value**2 * 2.0**-46)
    found, wanted = channel_moments(other)[1], exact(other, (0, 2, 3))[1]
    np.testing.assert_allclose(np.asarray(found).ravel(), wanted if value < 1e18 else np.inf, rtol=1e-4)


def test_values_of_all_magnitudes() -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((4, 8, 56, 56)) * 2.0 ** rng.integers(-20, 20, (4, 8, 56, 56)), jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(channel_moments(x)[1]).ravel(), exact(x, (0, 2, 3))[1], rtol=1e-5)


def test_what_is_not_finite_stays_so() -> None:
    x = images((2, 3, 16, 16), 1.0).at[0, 0, 0, 0].set(jnp.nan).at[1, 1, 2, 3].set(jnp.inf)
    mean, variance = (np.asarray(one).ravel() for one in channel_moments(x))
    assert np.isnan(mean[0]) and np.isnan(variance[0]) and np.isinf(mean[1]) and not np.isfinite(variance[1])
    assert np.isfinite(mean[2]) and np.isfinite(variance[2])


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        ((2, 8, 56, 56), jnp.bfloat16, (56, 56)),
        ((2, 8, 112, 112), jnp.bfloat16, (224, 56)),
        ((2, 8, 14, 14), jnp.bfloat16, (7, 2, 14)),
        ((2, 8, 7, 7), jnp.bfloat16, (1, 7, 7)),
        ((2, 8, 56, 56), jnp.float32, None),  # squares have 48 digits
        ((2, 8, 56, 56), jnp.float16, None),  # 22
        ((2, 8, 67, 67), jnp.bfloat16, None),  # no divisor
        ((2, 8, 2, 2), jnp.bfloat16, None),  # sums as large as the images
        ((2, 8), jnp.bfloat16, None),
    ],
)
def test_which_images_have_rows(shape: tuple[int, ...], dtype: jnp.dtype, rows: tuple[int, ...] | None) -> None:
    assert row_shape(jnp.zeros(shape, dtype)) == rows


@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "instance_norm"])
def test_norms_far_from_zero_are_exact(name: str) -> None:
    """Where eager's, which round the mean to bfloat16 first, are off by a tenth of the deviation."""
    torch.manual_seed(0)
    x = (torch.randn(2, 8, 16, 16) * 2 + 300).to(torch.bfloat16)

    def norm(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        if name == "batch_norm":
            return F.batch_norm(x, mean.clone(), variance.clone(), training=True)
        return F.group_norm(x, 4) if name == "group_norm" else F.instance_norm(x)

    args = x, torch.zeros(8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    with compat.enable_x64(True):
        (found,) = jax.tree.leaves(evaluator_of(capture(norm, *args))(*map(to_jax, args)))
    wanted = norm(*(one.double() for one in args)).float()
    torch.testing.assert_close(torch.tensor(np.asarray(found.astype(jnp.float32))), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("groups", [None, 8])
def test_a_convolution_gives_the_sums(groups: int | None) -> None:
    """No operation reads what it gives for statistics alone."""
    weight = torch.empty(64, 64, 3, 3, dtype=torch.bfloat16)
    x = torch.empty(64, 64, 56, 56, dtype=torch.bfloat16).to(memory_format=torch.channels_last)

    def fn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        made = F.conv2d(x, weight, padding=1)
        normed = F.batch_norm(made, None, None, training=True) if groups is None else F.group_norm(made, groups)
        return F.conv2d(torch.relu(normed), weight, padding=1)

    chip = chips.find("tpu7x")
    one = aot.capture(fn, (x, weight), {}, chip, {"fuse": "never"}, ())
    reading = [
        operation
        for operation in aot.compile_captured(one, chip, True, False).entry_operations
        if operation.hbm_bytes_read >= x.nbytes and operation.hbm_bytes_written < x.nbytes / 4
    ]
    assert not reading


@pytest.mark.parametrize("shape", [(0, 6, 16), (2, 6, 0), (2, 0, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_elements(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = jnp.zeros(shape, jnp.float32 if dtype == torch.float32 else jnp.bfloat16)
    mean, variance = group_moments(x, 2)
    assert mean.shape == variance.shape == (shape[0], 2, 1, 1)
    assert channel_moments(x)[0].shape == (1, shape[1], 1)
