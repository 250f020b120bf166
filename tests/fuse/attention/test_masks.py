"""Masks that are inputs, and lengths that blocks do not divide: forward and gradients against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.fuse.attention.functions import (
    LENGTH,
    WIDTH,
    actions,
    below,
    compiled,
    equal,
    kernels,
    operands,
    rows,
    trained,
)
from tpu_lowering.fuse.attention.static_masks import StaticMask, lengthened

Function = Callable[..., Any]
BOTH = ["splash_attention", "splash_attention_gradient"]


def lengths(*of: int, left: bool = False) -> torch.Tensor:
    """bool [batch, LENGTH]: True for keys that there are."""
    places, counts = torch.arange(LENGTH), torch.tensor(of)[:, None]
    return places >= LENGTH - counts if left else places < counts


def padded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, attn_mask=mask[:, None, None, :], enable_gqa=True)


def padded_and_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, attn_mask=mask[:, None, None, :] & below(), enable_gqa=True)


def encoder(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As transformers writes it: hidden keys have the least number of the type added."""
    added = torch.where(mask[:, None, None, :], 0.0, torch.finfo(query.dtype).min).to(query.dtype)
    return ((query @ key.mT) * WIDTH**-0.5 + added).softmax(-1) @ value


def with_added(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """What is added is an argument, of which nothing is known."""
    return ((query @ key.mT) * WIDTH**-0.5 + added).softmax(-1) @ value


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("function", "mask", "key_heads", "dtype"),
    [
        (padded, lengths(100, 0), 2, torch.float32),
        (padded, lengths(100, 0), 2, torch.bfloat16),
        (padded_and_causal, lengths(100, 256, left=True), 2, torch.float32),
        (encoder, lengths(100, 0), 4, torch.float32),
        (
            with_added,
            torch.where(lengths(256, 100), torch.arange(-256.0, 0) / 32, -torch.inf)[:, None, None, :],
            4,
            torch.float32,
        ),
    ],
)
def test_gradients_with_a_mask_of_keys(
    function: Function, mask: torch.Tensor, key_heads: int, dtype: torch.dtype
) -> None:
    """A query that sees no key gives 0 in one operator and the mean of all values in another, as in eager."""
    record, pairs = trained(function, operands(dtype, key_heads), mask)
    assert kernels(record) == BOTH
    equal(pairs, 2e-5 if dtype == torch.float32 else 4e-2)


def test_a_row_of_negative_infinity_is_nan() -> None:
    record, pairs = trained(with_added, operands(), torch.where(lengths(0, 256), 0.0, -torch.inf)[:, None, None, :])
    assert kernels(record) == BOTH
    assert all(bool(one[0].isnan().all()) and not bool(one[1].isnan().any()) for one, _ in pairs)
    equal(pairs, 2e-5)


@pytest.mark.parametrize("cpu_kernels", ["vectorized", "interpret"])
def test_rounded_lengths(cpu_kernels: str) -> None:
    """200 keys: the kernel has 256, and nobody sees the others. Rows that it has besides have no gradient."""
    given = [rows(4, torch.float32, at, length=200) for at in range(3)]
    record, pairs = trained(sdpa, given, cpu_kernels=cpu_kernels)
    assert kernels(record) == BOTH
    equal(pairs, 2e-5)


def test_rounded_lengths_with_masks() -> None:
    """A length that no power of two divides, keys of another one, a mask of no input and one of keys."""

    def function(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        near = torch.ones(200, 230, dtype=torch.bool).tril(30)
        return sdpa(query, key, value, attn_mask=mask[:, None, None, :] & near)

    given = [rows(4, torch.float32, at, length) for at, length in enumerate((200, 230, 230))]
    record, pairs = trained(function, given, lengths(230, 100)[:, :230])
    assert kernels(record) == BOTH
    equal(pairs, 2e-5)


@pytest.mark.parametrize("sizes", [(200, 200), (200, 230), (230, 200)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_longer_mask_hides_what_is_added(sizes: tuple[int, int], is_causal: bool) -> None:
    mask = StaticMask(*sizes) if is_causal else None
    longer = lengthened(mask, sizes, (256, 256))
    assert longer is not None and longer.array.any(axis=1).all()
    assert not longer.array[: sizes[0], sizes[1] :].any()
    seen = torch.ones(sizes).tril() if is_causal else torch.ones(sizes)
    assert (longer.array[: sizes[0], : sizes[1]] == seen.bool().numpy()).all()


# What stays ---------------------------------------------------------------------------------------------
def test_gradients_with_a_mask_of_queries_stay() -> None:
    """The forward is a kernel, the gradients are XLA's, of what the kernel kept."""

    def function(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return sdpa(query, key, value, attn_mask=mask)

    mask = torch.rand(1, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) > 0.3
    record, pairs = trained(function, operands(), mask)
    assert kernels(record) == ["flash_attention", "TL521"]
    equal(pairs, 2e-5)
    (action,) = actions(record, "backward")
    inline(action.reason, "expected, for gradients, a mask that depends on no input, or on the key alone, got another")


def test_a_mask_with_a_gradient_stays() -> None:
    given = [*operands(), torch.randn(4, 1, LENGTH, generator=torch.Generator().manual_seed(3))]
    record, pairs = trained(with_added, given)
    assert kernels(record) == ["TL522"]
    equal(pairs, 1e-4)


def test_a_mask_of_queries_for_rounded_lengths_stays() -> None:
    given = [rows(4, torch.float32, at, length=200) for at in range(3)]
    run, record = compiled(lambda *operands: sdpa(*operands[:3], attn_mask=operands[3]))
    run(*given, torch.ones(200, 200, dtype=torch.bool))
    (action,) = actions(record)
    inline(
        action.reason,
        "expected, with a mask of queries and keys, lengths that are multiples of 128, got 200 and 200",
    )


# Bands ---------------------------------------------------------------------------------------------------
def a_window(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Grouped heads; each query sees the hundred keys up to its own."""
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    return sdpa(query, key, value, attn_mask=(j <= i) & (j > i - 100), enable_gqa=True)


def both_sides(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    return sdpa(query, key, value, attn_mask=(i - j).abs() <= 60, enable_gqa=True)


@pytest.mark.parametrize(("function", "length"), [(a_window, 256), (a_window, 200), (both_sides, 256)])
def test_gradients_of_large_bands(function: Function, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask is so small that it may be computed: all that is known of it is its band."""
    for module in ("masks", "static_masks"):
        monkeypatch.setattr(f"tpu_lowering.fuse.attention.{module}.MOST", 1)
    monkeypatch.setattr("tpu_lowering.fuse.attention.static_masks.StaticMask.of", None)
    given = [rows(heads, torch.float32, at, length) for at, heads in enumerate((4, 2, 2))]
    record, pairs = trained(function, given)
    assert kernels(record) == BOTH
    equal(pairs, 2e-5)


@pytest.mark.parametrize("band", [(None, 0), (-100, 0), (-60, 60), (5, 130), (-300, -3), (None, None)])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_kernel_sees_a_band(band: tuple[int | None, int | None], by_position: bool) -> None:
    """Splash attention's own functions of positions, and blocks of the mask, are those of ``StaticMask``."""
    from tpu_lowering.fuse.attention.splash_masks import splash_mask

    mask = StaticMask(256, 384, b"", *band)
    found = splash_mask(mask, (256, 384), by_position)
    whole = [found[slice(i, i + 128), slice(j, j + 128)] for i in (0, 128) for j in (0, 128, 256)]
    expected = [mask.array[i : i + 128, j : j + 128] for i in (0, 128) for j in (0, 128, 256)]
    assert all((one == other).all() for one, other in zip(whole, expected, strict=True))
