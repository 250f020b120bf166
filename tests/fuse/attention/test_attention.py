"""Attention as calls of JAX's kernels: against eager, in every form that one is found in, and what is left alone."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.fuse.attention.functions import (
    LENGTH,
    a_window,
    actions,
    below,
    causal,
    close,
    compiled,
    equal,
    filled_in,
    kernels,
    operands,
    rows,
    trained,
    written_out,
)


def some_keys(*shape: int) -> torch.Tensor:
    """A bool mask, in which the query 5 sees no key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.3
    mask[..., 5, :] = False
    return mask


def every_key(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, scale=0.3)


def with_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, attn_mask=mask, enable_gqa=True)


def taken_apart(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A row without keys is NaN."""
    scores = torch.where(mask, 0.1 * (query @ key.mT), -math.inf)
    exp = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (exp / exp.sum(-1, keepdim=True)) @ value


def causal_and_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = torch.where(below(), (query @ key.mT) * 0.125, -math.inf)
    return (scores + torch.where(mask, 0.0, -math.inf).to(query.dtype)).softmax(-1) @ value


def with_bias(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return ((query @ key.mT) * 0.125 + bias).softmax(-1) @ value


@dataclasses.dataclass(frozen=True)
class Case:
    """A function, what it is called with besides query, key and value, and the kernel it becomes."""

    function: Callable[..., Any]
    kernel: str
    key_heads: int = 4
    others: Callable[[], Sequence[torch.Tensor]] = tuple


SQUARE = (1, 1, LENGTH, LENGTH)
CASES = {
    "causal": Case(causal, "flash_attention, blocks of 128 queries and 128 keys"),
    "causal_shared_keys": Case(causal, "flash_attention", 2),
    "causal_one_head_of_keys": Case(causal, "flash_attention", 1),
    "every_key": Case(every_key, "flash_attention, blocks of 256 queries and 256 keys"),
    "window": Case(a_window, "splash_attention"),
    "window_shared_keys": Case(a_window, "splash_attention", 2),
    "mask": Case(with_mask, "flash_attention", 4, lambda: [some_keys(*SQUARE)]),
    "mask_of_a_head": Case(with_mask, "flash_attention", 2, lambda: [some_keys(4, LENGTH, LENGTH)]),
    "mask_of_keys": Case(with_mask, "splash_attention", 2, lambda: [torch.arange(LENGTH).view(1, 1, 1, -1) < 100]),
    "bias": Case(with_mask, "flash_attention", 4, lambda: [rows(1, torch.float32, 4)[:1].repeat(1, 1, 1, 4)]),
    "written_out": Case(written_out, "flash_attention"),
    "written_out_shared_keys": Case(written_out, "flash_attention", 2),
    "filled_in": Case(filled_in, "flash_attention"),
    "taken_apart": Case(taken_apart, "flash_attention", 4, lambda: [some_keys(*SQUARE)]),
    "causal_and_mask": Case(causal_and_mask, "flash_attention", 4, lambda: [some_keys(2, 1, LENGTH, LENGTH)]),
    "slopes": Case(
        with_bias, "splash_attention", 4, lambda: [torch.arange(4.0).view(4, 1, 1) * torch.arange(-256.0, 0)]
    ),
}


IN_BF16 = ("causal_shared_keys", "window", "mask", "written_out_shared_keys", "causal_and_mask")


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in CASES), *((name, torch.bfloat16) for name in IN_BF16)]
)
def test_equals_eager(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    others = [other if other.dtype == torch.bool else other.to(dtype) for other in case.others()]
    given = [*operands(dtype, case.key_heads), *others]
    run, record = compiled(case.function)
    result = run(*given)
    (action,) = actions(record)
    assert action.kind == "fused" and f"is the kernel {case.kernel}" in action.reason
    assert action.where.startswith(f"{pathlib.Path(case.function.__code__.co_filename).name}:")
    close(result, case.function(*given))


@pytest.mark.parametrize("name", ["causal_shared_keys", "window", "mask_of_a_head"])
def test_interpreted_and_verified(name: str) -> None:
    """In Pallas's interpreter, too; and the pass changes no value of the graph."""
    case = CASES[name]
    given = [*operands(torch.float32, case.key_heads), *case.others()]
    run, record = compiled(case.function, cpu_kernels="interpret", verify=True)
    close(run(*given), case.function(*given))
    assert [action.kind for action in actions(record)] == ["fused"]


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("function", "key_heads"), [(causal, 4), (causal, 2), (every_key, 4)])
def test_gradients(function: Callable[..., Any], key_heads: int, dtype: torch.dtype) -> None:
    record, pairs = trained(function, operands(dtype, key_heads))
    assert kernels(record) == ["splash_attention", "splash_attention_gradient"]
    equal(pairs, 2e-5 if dtype == torch.float32 else 6e-2)  # sums over queries and heads, rounded in another order


def test_heads_that_share_keys_without_kernels() -> None:
    record, pairs = trained(causal, operands(torch.float32, 2), fuse="never")
    equal(pairs, 2e-5)
    assert actions(record, "forward") == []


# What stays ---------------------------------------------------------------------------------------------
def gated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.mT).softmax(-1).mul((value @ key.mT).sigmoid()) @ value


def weights_too(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(query @ key.mT, -1)
    return weights @ value + weights.amin(-1, keepdim=True)


def kept(function: Callable[..., Any], *given: torch.Tensor) -> str:
    """The one refusal of a function, which runs as it would without the pass."""
    run, record = compiled(function)
    result = run(*given)
    (action,) = actions(record)
    assert action.kind == "unfused"
    close(result, function(*given))
    return f"[{action.code}] {action.reason}"


def test_refusals() -> None:
    query, key, value = operands()
    another = "[TL521] expected weights that are used as they are or dropped, got some that another tensor multiplies"
    inline(kept(gated, query, key, value), another)
    few = [rows(4, torch.float32, at, length=24) for at in range(3)]
    inline(
        kept(every_key, *few),
        "[TL523] expected fewer bytes than XLA's, got 2.4 MiB where XLA moves about 0.8",
    )
    inline(
        kept(every_key, query.double(), key.double(), value.double()),
        "[TL521] expected operands that are all f32 or all bf16, got f64, f64, f64",
    )
    inline(
        kept(weights_too, query, key, value),
        "[TL522] expected scores and weights that nothing else uses, got another use of _softmax",
    )
    narrow = [x[..., :60].contiguous() for x in (query, key, value)]
    inline(kept(every_key, *narrow), "[TL521] expected rows of a multiple of 8 elements, got 60 and 60")
    inline(kept(backwards, query, key, value), "[TL521] expected a positive scale, got -1")


def backwards(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, scale=-1.0)


def along_queries(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ key.mT, -2) @ value


def scaled_after_a_bias(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.softmax((query @ key.mT + value[..., :1]) * 2, -1) @ value


@pytest.mark.parametrize("function", [along_queries, scaled_after_a_bias])
def test_other_softmaxes_between_products_are_left_alone(function: Callable[..., Any]) -> None:
    run, record = compiled(function)
    given = operands()
    close(run(*given), function(*given))
    assert actions(record) == []
