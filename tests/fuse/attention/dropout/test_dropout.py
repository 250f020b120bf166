"""Attention whose weights are dropped: both kernels against eager with the same draws, and what is left alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline as inline
from torch.utils.checkpoint import checkpoint

from tests.cases.harness import Record
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import actions, compiled, equal, kernels
from tpu_lowering import aot, clear
from tpu_lowering.fuse.attention.dropout import sizes
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.ir import chips
from tpu_lowering.ir.dropped_attention import dropped_attention, dropped_attention_gradients
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower import dropped_attention as lowered

Function = Callable[..., torch.Tensor]
BOTH = ["dropped_attention", "dropped_attention_gradient"]
bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def operands(
    heads: int, lengths: tuple[int, int], width: int, dtype: torch.dtype, key_heads: int = 0
) -> list[torch.Tensor]:
    """Query, key and value of a batch of two."""
    shapes = [(heads, lengths[0]), *[(key_heads or heads, lengths[1])] * 2]
    generator = torch.Generator().manual_seed(sum(lengths) + width)
    return [torch.randn(2, *shape, width, generator=generator).to(dtype) for shape in shapes]


def dropping(p: float, **given: Any) -> Function:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        mask = {"attn_mask": masks[0]} if masks else {}
        return F.scaled_dot_product_attention(query, key, value, dropout_p=p, **given, **mask)

    return attend


def written_out(p: float) -> Function:
    """As transformers writes it."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        key, value = repeated_for(query, key), repeated_for(query, value)
        scores = torch.matmul(query, key.transpose(2, 3)) * query.shape[-1] ** -0.5
        for mask in masks:
            scores = scores + mask
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(F.dropout(weights, p=p), value).transpose(1, 2).contiguous()

    return attend


def repeated_for(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // rows.shape[1]
    return rows[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) if groups > 1 else rows


def trained(
    function: Function, given: Sequence[torch.Tensor], *others: torch.Tensor, **options: Any
) -> tuple[Record, list[tuple[Any, Any]]]:
    """(what was observed, pairs of the result and of each gradient of ``given`` with eager's of the same draws)."""
    run, record = compiled(function, random="torch", **options)
    found: list[list[torch.Tensor | None]] = []
    for attend in (run, function):
        rows = [x.detach().clone().requires_grad_() for x in given]
        torch.manual_seed(3)
        result = attend(*rows, *others)
        result.backward(torch.randn(result.shape, generator=torch.Generator().manual_seed(7)).to(result.dtype))
        found.append([result, *(one.grad for one in rows)])
    return record, list(zip(*found, strict=True))


def limit(dtype: torch.dtype) -> float:
    return 3e-5 if dtype == torch.float32 else 6e-2


def padding(keys: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """Which keys of two sequences are seen, [2, 1, 1, keys]; or what hides the others."""
    seen = torch.arange(keys) < torch.tensor([keys, keys // 3])[:, None, None, None]
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention and the sizes of its operands."""

    function: Function
    dtype: torch.dtype = torch.float32
    heads: int = 2
    lengths: tuple[int, int] = (128, 128)
    width: int = 64
    key_heads: int = 0
    others: tuple[torch.Tensor, ...] = ()


CASES = {
    "plain": Case(dropping(0.1)),
    "plain_bf16": Case(dropping(0.1), bf16),
    "half": Case(dropping(0.5), lengths=(256, 128)),
    "half_bf16": Case(dropping(0.5), bf16, lengths=(256, 128)),
    "odd_lengths": Case(dropping(0.1), lengths=(200, 136)),
    "odd_lengths_bf16": Case(dropping(0.1), bf16, lengths=(200, 136)),
    "causal": Case(dropping(0.1, is_causal=True), lengths=(256, 256), heads=4),
    "causal_bf16": Case(dropping(0.1, is_causal=True), bf16, lengths=(200, 200)),
    "padded": Case(dropping(0.1), others=(padding(128),)),
    "padded_bf16": Case(dropping(0.5), bf16, lengths=(200, 200), others=(padding(200),)),
    "of_queries": Case(dropping(0.1), lengths=(200, 128), others=(torch.randn(1, 2, 200, 128),)),
    "one_head_fills_lanes": Case(dropping(0.1), width=128, key_heads=0),
    "no_few_heads_fill_lanes": Case(dropping(0.1), heads=3, width=40),
    "shared": Case(written_out(0.1), heads=4, key_heads=2),
    "shared_apart": Case(written_out(0.1), heads=4, key_heads=2, width=128),
    "shared_bf16": Case(dropping(0.1, enable_gqa=True), bf16, heads=4, key_heads=2),
    "written": Case(written_out(0.1)),
    "written_bf16": Case(written_out(0.5), bf16),
    "written_padded_bf16": Case(written_out(0.1), bf16, others=(padding(128, bf16),)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_eager(name: str) -> None:
    case = CASES[name]
    given = operands(case.heads, case.lengths, case.width, case.dtype, case.key_heads)
    record, pairs = trained(case.function, given, *case.others)
    assert kernels(record) == BOTH
    kind = "bf16" if case.dtype == bf16 else "f32"
    assert all(f"%kernel_call: ({kind}[" in record.graphs[graph].at("lower").text for graph in ("forward", "backward"))
    equal(pairs, limit(case.dtype))


def test_values_are_those_that_are_drawn_without_kernels() -> None:
    given = operands(2, (128, 128), 64, torch.float32)
    found: list[torch.Tensor] = []
    for fuse in ("always", "never"):
        run, _ = compiled(dropping(0.3), fuse=fuse)
        torch.manual_seed(5)
        found.append(run(*given))
    torch.testing.assert_close(*found, rtol=2e-5, atol=2e-5)


def twice(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """An attention of what another gives, each computed again in the backward."""
    for _ in range(2):
        query = checkpoint(dropping(0.2), query, key, value, use_reentrant=False)
    return query


@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_checkpointed_attentions_of_one_another(dtype: torch.dtype) -> None:
    record, pairs = trained(twice, operands(2, (128, 128), 64, dtype))
    assert set(kernels(record)) == set(BOTH)
    equal(pairs, limit(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_without_gradients(dtype: torch.dtype) -> None:
    given = operands(2, (256, 128), 64, dtype)
    run, record = compiled(twice, random="torch", cpu_kernels="interpret", verify=True)
    found: list[torch.Tensor] = []
    for attend in (run, twice):
        torch.manual_seed(3)
        found.append(attend(*given))
    equal([tuple(found)], limit(dtype))
    assert [action.kind for action in actions(record)] == ["fused", "fused"]


def test_interpreted_in_several_blocks() -> None:
    """Gradients of keys and values are summed over blocks of queries."""
    case = CASES["causal"]
    given = operands(2, (512, 512), 64, torch.float32)
    small = mock.patch.object(sizes, "QUERIES", (128,))
    with small:
        clear()
        record, pairs = trained(case.function, given, cpu_kernels="interpret", verify=True)
    assert "blocks of 128 queries" in actions(record, "backward")[0].reason
    equal(pairs, 3e-5)


def step(gradient: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    result, gradients = torch.func.vjp(written_out(0.2), *given)
    return result, *gradients(gradient)


def test_forward_and_backward_as_one_program() -> None:
    given = operands(2, (128, 128), 64, torch.float32)
    gradient = torch.randn(2, 128, 2, 64)
    run, record = compiled(step, random="torch")
    found: list[tuple[torch.Tensor, ...]] = []
    for function in (run, step):
        torch.manual_seed(3)
        found.append(function(gradient, *given))
    equal(list(zip(*found, strict=True)), 3e-5)
    assert [action.kind for action in actions(record)] == ["fused", "fused"]


# What stays ---------------------------------------------------------------------------------------------
def times_another(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.mT).softmax(-1).mul(value @ key.mT) @ value


def times_a_row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Whole keys are dropped."""
    kept = F.dropout(torch.ones(2, 2, 1, 128), 0.5)
    return (query @ key.mT).softmax(-1).mul(kept) @ value


def times_many_numbers(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.mT).softmax(-1).mul(torch.rand(2, 2, 128, 128)) @ value


def returned(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = F.dropout((query @ key.mT / 8).softmax(-1), 0.1)
    return weights @ value + weights.amax(-1, keepdim=True)


def before_dropping(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = (query @ key.mT / 8).softmax(-1)
    return F.dropout(weights, 0.1) @ value + weights.amax(-1, keepdim=True)


class OtherDraw(torch.autograd.Function):
    """Drops weights by one draw, and their gradients by another."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor) -> torch.Tensor:
        kept, other = (torch.empty_like(weights).bernoulli_(0.5) for _ in range(2))
        ctx.save_for_backward(other)
        return weights * (kept / 0.5)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (ctx.saved_tensors[0] / 0.5)


def by_another_draw(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return OtherDraw.apply((query @ key.mT / 8).softmax(-1)) @ value


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (times_another, "TL521"),
        (times_a_row, "TL521"),
        (times_many_numbers, "TL521"),
        (returned, "TL522"),
        (before_dropping, "TL522"),
        (by_another_draw, "TL522"),
    ],
)
def test_what_stays(function: Function, code: str) -> None:
    record, pairs = trained(function, operands(2, (128, 128), 64, torch.float32))
    assert kernels(record)[:1] == [code]
    assert not set(kernels(record)) & set(BOTH)
    equal(pairs, 1e-4)


def refusal(function: Function, *given: torch.Tensor) -> str:
    run, record = compiled(function)
    run(*given)
    (action,) = actions(record)
    return f"[{action.code}] {action.reason}"


def bounded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = 20 * torch.tanh(query @ key.mT / 20)
    return F.dropout(scores.softmax(-1), 0.1) @ value


def filled_with_a_number(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    return F.dropout((query @ key.mT / 8).masked_fill(~seen, -10.0).softmax(-1), 0.1) @ value


def test_refusals() -> None:
    given = operands(2, (128, 128), 64, torch.float32)
    inline(
        refusal(times_another, *given),
        "",
    )
    inline(
        refusal(returned, *given),
        "",
    )
    inline(
        refusal(bounded, *given),
        "",
    )
    inline(
        refusal(filled_with_a_number, *given, padding(128)),
        "",
    )
    inline(
        refusal(dropping(0.1), *operands(1, (32, 1 << 17), 8, torch.float32)),
        "",
    )
    inline(
        refusal(dropping(0.1), *operands(2, (16, 16), 8, torch.float32)),
        "",
    )


# The operators ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
@pytest.mark.parametrize(("is_causal", "is_safe"), [(True, False), (False, True)])
def test_lowered_as_they_are(dtype: torch.dtype, is_causal: bool, is_safe: bool) -> None:
    """The JAX form, the torch form, and autograd's gradients of that; a query may be left no key."""
    query, key, value = (torch.randn(2, 12, width).to(dtype) for width in (4 * 8, 2 * 8, 2 * 8))
    kept, mask = torch.rand(2, 4, 12, 12).gt(0.3).to(torch.int8), torch.randn(2, 1, 12, 12)
    if is_safe:
        mask[0, 0, 3] = -torch.inf
    numbers = (2, 0.3, 1 / 0.7, is_causal, is_safe)
    given = torch.randn(2, 12, 32).to(dtype)
    rows = [one.float().requires_grad_() for one in (query, key, value)]
    result = dropped_attention(*rows, kept, mask, *numbers)
    expected = [result, *torch.autograd.grad(result, rows, given.float())]
    found = [
        dropped_attention(query, key, value, kept, mask, *numbers),
        *dropped_attention_gradients(given, query, key, value, kept, mask, *numbers),
    ]
    taken = [jnp.asarray(one.float().numpy()).astype(str(dtype)[6:]) for one in (given, query, key, value)]
    others = [jnp.asarray(one.numpy()) for one in (kept, mask)]
    types = [TensorType.of(one) for one in (query, key, value)]
    in_jax = [
        lowered.dropped_attention(*taken[1:], *others, *numbers, out=types[0]),
        *lowered.dropped_attention_gradients(*taken, *others, *numbers, out=types),
    ]
    for one, other, by_autograd in zip(found, in_jax, expected, strict=True):
        assert one.dtype == dtype and str(other.dtype) == str(dtype)[6:]
        close = functools.partial(torch.testing.assert_close, rtol=limit(dtype), atol=limit(dtype))
        close(one.float(), by_autograd.nan_to_num() if is_safe else by_autograd)
        close(torch.from_numpy(np.array(other.astype(jnp.float32))), one.float())


def test_golden() -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        return F.dropout((x @ x.mT).softmax(-1), 0.5) @ x

    inline(
        before_and_after(FuseAttention(), attend, (1, 2, 256, 64)),
        "",
    )


def projected(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    heads = F.linear(x, weight).view(*x.shape[:2], 3, -1, 64).permute(2, 0, 3, 1, 4)
    return F.linear(dropping(0.1)(*heads).transpose(1, 2).flatten(2), out)


def test_a_chip_writes_no_weights() -> None:
    """The forward writes what is kept, 8 bits each; neither direction writes float32 weights, or pads or permutes
    queries, keys and values."""
    shapes = ((8, 512, 512), (1536, 512), (512, 512))
    given = tuple(torch.empty(shape, dtype=bf16, requires_grad=True) for shape in shapes)
    moved: dict[str, int] = {}
    for passes in ("simplify_views,contract_heads,fuse_attention", "simplify_views,contract_heads"):
        captured = aot.capture_step(projected, given, {}, TPU7X, {"passes": passes}, ())
        compiled = [aot.compile_captured(one, TPU7X, True, simulate=False) for one in captured]
        moved[passes] = sum(one.hbm_bytes for one in compiled)
    with_kernels, without = moved.values()
    print([one / 2**20 for one in moved.values()])
    assert with_kernels < 0.4 * without
