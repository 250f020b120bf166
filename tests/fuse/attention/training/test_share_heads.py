"""Keys that are repeated for heads that share them: saved once, with the gradients of all their heads summed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.cases.harness import Record
from tests.fuse.attention.functions import LENGTH, WIDTH, below, equal, kernels, operands, repeated, trained

Function = Callable[..., torch.Tensor]
BOTH = ["splash_attention", "splash_attention_gradient"]


def by_expand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, repeated(query, key), repeated(query, value), is_causal=True)


def by_interleave(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    return sdpa(query, *(one.repeat_interleave(groups, 1) for one in (key, value)), attn_mask=below())


def value_alone_is_wanted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return by_expand(query.detach(), key.detach(), value) + query + key.repeat(1, 2, 1, 1)


def saved_keys(record: Record) -> list[str]:
    """What the backward is given that has a row for each key."""
    lines = record.graphs["backward"].at("captured").text.splitlines()
    shapes = [line.partition(": ")[2].partition(" = input")[0] for line in lines if line.endswith("= input")]
    return sorted(shape for shape in shapes if f"{LENGTH}, {WIDTH}]" in shape)


@pytest.mark.sweep
@pytest.mark.parametrize("fuse", ["always", "interpret"])
@pytest.mark.parametrize("function", [by_expand, by_interleave])
def test_shared_heads_are_saved_once(function: Function, fuse: str) -> None:
    options = {"cpu_kernels": "interpret"} if fuse == "interpret" else {}
    record, pairs = trained(function, operands(torch.float32, 2), **options)
    assert kernels(record) == BOTH
    equal(pairs, 2e-5)
    once, many = (f"f32[2, {heads}, {LENGTH}, {WIDTH}]" for heads in (2, 4))
    assert saved_keys(record).count(once) == 2  # key and value
    assert saved_keys(record).count(many) == 3  # query, result and its gradient


def test_bfloat16() -> None:
    record, pairs = trained(by_expand, operands(torch.bfloat16, 1))
    assert kernels(record) == BOTH
    equal(pairs, 6e-2)


def test_without_kernels_nothing_is_shared() -> None:
    record, pairs = trained(by_expand, operands(torch.float32, 2), fuse="never")
    equal(pairs, 2e-5)
    assert f"f32[2, 2, {LENGTH}, {WIDTH}]" not in saved_keys(record)


# What stays ---------------------------------------------------------------------------------------------
def repeated_keys_are_used(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What is made of the gradient of the many heads is more than their sum."""
    many = repeated(query, key)
    return sdpa(query, many, repeated(query, value), is_causal=True) + many.sin()


def not_the_same_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, repeated(query, key), value.repeat(1, 2, 1, 1), is_causal=True)


@pytest.mark.parametrize("function", [repeated_keys_are_used, not_the_same_heads, value_alone_is_wanted])
def test_gradients_are_right_in_any_case(function: Function) -> None:
    _, pairs = trained(function, operands(torch.float32, 2))
    equal(pairs, 2e-5)
