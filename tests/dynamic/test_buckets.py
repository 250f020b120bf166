"""Sizes rounded up to buckets: few programs, and every result as in eager, whatever the padding holds.

``poison`` fills padding with NaN, and with the largest integer where there is no NaN, so that any use of it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.dynamic.watch import Watch
from tpu_lowering.options import round_up

F = nn.functional


class Pooled(nn.Module):
    """A small MLP, attention weights over the tokens, a mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        weights = torch.softmax(y @ y.transpose(1, 2) / x.shape[1], -1)
        return (weights @ y).mean(1)


class Encoder(nn.Module):
    """A transformer encoder layer with positions, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(64, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(self.tokens(tokens) + self.places(torch.arange(tokens.shape[1])))


def test_a_pooling_model_for_lengths_1_to_64() -> None:
    """64 lengths, 7 programs: torch keeps length 1 apart, 2 to 64 are 2, 4, ..., 64."""
    watch, model = Watch(), Pooled().requires_grad_(False)
    run = watch.compile(model, dynamic=True, buckets="power_of_two", poison=True)
    for length in range(1, 65):
        x = torch.randn(3, length, 4)
        torch.testing.assert_close(run(x), model(x), check_stride=True)
    assert watch.graphs == 2
    assert len(watch.programs) == 7
    assert watch.reasons("exact") == []


def test_an_encoder_layer_for_lengths_1_to_64() -> None:
    """Training: 63 lengths, 4 programs forward and 4 backward, at a step of 16; the batch is rounded too."""
    torch.manual_seed(0)
    watch, model = Watch(), Encoder()
    run = watch.compile(model, dynamic=True, buckets=16, poison=True)
    parameters = list(model.parameters())
    for length in (5, *range(2, 65)):  # not 2 first: torch takes sizes that are equal at first for one size
        tokens = torch.randint(0, 11, (3, length))
        result, wanted = run(tokens), model(tokens)
        torch.testing.assert_close(result, wanted, check_stride=True)
        if length % 9 == 0 or length in (2, 16, 17, 64):
            given = torch.randn_like(wanted) / length
            torch.testing.assert_close(
                torch.autograd.grad(result, parameters, given), torch.autograd.grad(wanted, parameters, given)
            )
    assert watch.graphs == 1
    assert (watch.of("forward"), watch.of("backward")) == (4, 4)
    assert watch.reasons("exact") == []
    tokens = torch.randint(0, 11, (3, 1))
    torch.testing.assert_close(run(tokens), model(tokens))


EXACT: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda x: x.sum(1),
    "sum of all": lambda x: x.sum(),
    "sum of a broadcast": lambda x: x.new_ones(()).expand(2, x.shape[1]).sum(),
    "product": lambda x: x.prod(1),
    "mean": lambda x: (x.mean(1), x.mean(), x.to(torch.bfloat16).mean(1, keepdim=True)),
    "largest": lambda x: (x.amax(1), x.max(1), x.argmax(1), x.max()),
    "smallest of negative": lambda x: ((-x).amin(1), (-x.abs()).min(1), x.argmin(1)),
    "largest of integers": lambda x: ((x * 9).int().amax(1), (x * 9).abs().to(torch.uint8).amin(1)),
    "any and all": lambda x: ((x > 2).any(1), (x < 9).all(1), (x * 0 + 1).all()),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(1), x.softmax(2)),
    "cumulative": lambda x: (x.cumsum(1), x.cummax(1), x.cumprod(1), x.logcumsumexp(1)),
    "cumulative, flattened": lambda x: x.reshape(-1).cumsum(0),
    "products": lambda x: (x.transpose(1, 2) @ x, x @ x.transpose(1, 2), x[0].t() @ x[0], x[0].t().mv(x[0, :, 0])),
    "flattened rows": lambda x: (x.reshape(-1, 3).t() @ x.reshape(-1, 3), x.reshape(-1, 3).mean(0)),
    "flattened, length first": lambda x: x.transpose(0, 1).reshape(-1, 3).sum(1).reshape(-1, 2).sum(1),
    "first": lambda x: (x[:, 0] * 2, x[:, :2] * 2, x[:, 1:] * 2),
    "last": lambda x: (x[:, -1] * 2, x[:, :-1] * 2, x[:, -2].sum()),
    "next": lambda x: ((x[:, 1:] - x[:, :-1]).square().mean(), x[:, 1:].reshape(-1, 3).sum(0)),
    "joined at its end": lambda x: torch.cat([x.new_zeros(2, 1, 3), x], 1).sum(1),
    "padded": lambda x: (F.pad(x, (0, 0, 2, 3), value=2.0).sum(1), F.pad(x, (0, 0, 0, 32 - x.shape[1])).amax(1)),
    "causal": lambda x: (x @ x.transpose(1, 2)).tril().sum(2),
    "masked": lambda x: x.masked_fill(torch.arange(x.shape[1])[None, :, None] >= x.shape[1] - 2, 0).sum(1),
    "by index": lambda x: (x[:, torch.tensor([-1, 0])], x[torch.arange(2), torch.tensor([-1, 1])]),
    "gathered": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "looked up": lambda x: torch.arange(30.0).reshape(10, 3)[(x[..., 0].abs() * 2).long().clamp(max=9)],
    "added by index": lambda x: x.new_zeros(4, 3).index_put((torch.arange(x.shape[1]) % 4,), x[0], accumulate=True),
    "counted": lambda x: x.new_zeros(2, 4).scatter_add(1, (torch.arange(x.shape[1]) % 4).expand(2, -1), x[..., 0]),
    "written at the start": lambda x: torch.slice_scatter(x.new_zeros(2, 32, 3), x, 1, 0, x.shape[1]).sum(1),
    "written inside": lambda x: torch.slice_scatter(x, x[:, 1:] * 2, 1, 0, -1).sum(1),
    "one written": lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, -1).sum(1),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.unsqueeze(1)] * 3),
    "causal attention": lambda x: F.scaled_dot_product_attention(*[x.unsqueeze(1)] * 3, is_causal=True),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(
        *[x.unsqueeze(1)] * 3, attn_mask=(x @ x.transpose(1, 2))[:, None]
    ),
    "attention with a boolean mask": lambda x: F.scaled_dot_product_attention(
        *[x.unsqueeze(1)] * 3, attn_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    ),
    "layer norm": lambda x: F.layer_norm(x, (3,)).sum(1),
    "convolution of samples": lambda x: F.conv1d(x.transpose(0, 1), x.new_ones(2, 2, 2)).sum(0),
    "numbers": lambda x: (x / x.shape[1], x * (x.shape[1] // 2), x.shape[1] * 2, x > x.shape[1] ** 0.5),
    "integer numbers": lambda x: (torch.arange(x.shape[1]) * x.shape[1], torch.arange(x.shape[1]) // x.shape[1]),
    "filled with a number": lambda x: torch.full((2, x.shape[1]), x.shape[1]),
    "repeated": lambda x: (x.repeat(1, 2, 1).sum(1), x.repeat(3, 1, 1)),
    "not a number": lambda x: (x / 0 * 0).sum(1),
    "permuted result": lambda x: (x + 1).permute(2, 0, 1),
    "expanded result": lambda x: x.sum(2, keepdim=True).expand(-1, -1, 4),
}


@pytest.mark.parametrize("function", EXACT.values(), ids=EXACT)
def test_rounded_and_equal_to_eager(function: Callable[[torch.Tensor], Any]) -> None:
    watch = Watch()
    run = watch.compile(function, buckets=8, poison=True)
    torch.manual_seed(0)
    for length in (5, 7, 8):
        x = torch.randn(2, length, 3)
        torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(run(x), function(x), equal_nan=True, check_stride=True)
    assert watch.reasons("exact") == []
    assert (watch.graphs, len(watch.programs)) == (1, 1)


NOT_EXACT: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "sorted": (lambda x: x.sort(1).values, "expected a dimension of fixed size, because the operator mixes its"),
    "turned": (lambda x: x.flip(1), "expected a dimension of fixed size, because the operator moves elements past"),
    "variance": (lambda x: x.var(1), "expected a dimension of fixed size, because the operator mixes its elements"),
    "joined in front": (
        lambda x: torch.cat([x, x.new_zeros(2, 1, 3)], 1),
        "expected a dimension of fixed size, because another tensor follows it",
    ),
    "cut apart": (lambda x: x[:, : x.shape[1] // 2 * 2].reshape(2, -1, 2, 3), "expected a size that grows with one"),
    "place in all": (lambda x: x.argmax(), "expected a dimension of fixed size, because the place in the flattened"),
    "from the end": (lambda x: x[:, -3:], "expected a slice that starts at a fixed place, got one that counts"),
    "written by index": (
        lambda x: x.new_zeros(40, 3).index_put((torch.arange(x.shape[1]),), x[0]),
        "expected indices of fixed size, or values that are added up, got values that are written",
    ),
    "two layouts": (
        lambda x: x.reshape(-1, 3) + x.transpose(0, 1).reshape(-1, 3),
        "expected one layout, got [2, s",
    ),
    "determinant": (
        lambda x: torch.linalg.det(x @ x.transpose(1, 2)),
        "expected an operator with a rule for padding, got aten._linalg_det",
    ),
    "start is a number": (
        lambda x: torch.arange(x.shape[1], x.shape[1] * 2),
        "expected a size to be used as a size, got a number made of it as argument 'start'",
    ),
}


@pytest.mark.parametrize(("function", "reason"), NOT_EXACT.values(), ids=NOT_EXACT)
def test_not_rounded_where_padding_could_change_a_result(function: Callable[..., Any], reason: str) -> None:
    watch = Watch()
    run = watch.compile(function, buckets=8, poison=True)
    for length in (7, 9):
        x = torch.randn(2, length, 3)
        torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(run(x), function(x))
    (action,) = [action for action in watch.actions if action.kind == "exact"]
    assert action.code == "TL511" and "test_buckets.py" in action.where
    assert action.reason.startswith(f"L['x'].size()[1] is not rounded up: {reason}")
    assert len(watch.programs) == 2


def test_one_size_is_rounded_where_another_is_not() -> None:
    watch = Watch()

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sort(0).values.sum(1)

    run = watch.compile(function, dynamic=True, buckets=8, poison=True)
    for rows, columns in ((3, 4), (3, 7), (4, 5)):
        x = torch.randn(rows, columns)
        torch.testing.assert_close(run(x), function(x))
    assert [reason.partition(" is not")[0] for reason in watch.reasons("exact")] == ["L['x'].size()[0]"]
    assert len(watch.programs) == 2


def test_only_the_valid_part_of_a_mutated_input_is_written() -> None:
    watch = Watch()

    def function(cache: torch.Tensor, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        cache[:, : x.shape[1]] = x
        total.add_(x.sum(1))
        x.mul_(2)
        return cache.sum(1)

    run = watch.compile(function, buckets=8, poison=True)
    for length in (5, 7, 11):
        mine = [torch.randn(2, 12), torch.randn(2, length), torch.randn(2)]
        theirs = [value.clone() for value in mine]
        torch._dynamo.mark_dynamic(mine[1], 1)
        torch.testing.assert_close(run(*mine), function(*theirs))
        torch.testing.assert_close(mine, theirs)
    assert watch.reasons("exact") == []
    assert len(watch.programs) == 2


def test_a_bucket_is_not_larger_than_a_graph_allows() -> None:
    """A table of 10 rows takes lengths up to 10: 9 and 10 are rounded to 10, not to 16."""
    watch, table = Watch(), torch.randn(10, 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x + table[: x.shape[0]]).sum(0)

    run = watch.compile(function, buckets="power_of_two", poison=True)
    for length in (5, 8, 9, 10):
        x = torch.randn(length, 3)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(run(x), function(x))
    assert (watch.graphs, len(watch.programs)) == (1, 2)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_result_that_is_a_view_of_another_is_cut_out_of_it(gradient: bool) -> None:
    watch = Watch()

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = x + 1
        return y, y.select(1, 1), x.t()

    run = watch.compile(function, buckets=8, poison=True)
    for length in (5, 7, 8):
        x = torch.zeros(length, 2, requires_grad=gradient)
        torch._dynamo.mark_dynamic(x, 0)
        whole, part, of_argument = run(x)
        with torch.no_grad():
            part.fill_(7)
            of_argument[0].fill_(3)
        assert whole.tolist() == [[1, 7]] * length and x.tolist() == [[3, 0]] * length
        assert part.storage_offset() == 1 and of_argument.stride() == (1, 2)
    assert len(watch.programs) == 1


def test_views_of_a_value_that_is_no_result_are_not_rounded() -> None:
    watch = Watch()

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        return y[:-1], y[1:]

    run = watch.compile(function, dynamic=True, buckets=8, poison=True)
    first, second = run(torch.zeros(5))
    first.fill_(7)
    assert second.tolist() == [7, 7, 7, 1]
    assert "expected results with memory of their own, got two that share it" in watch.reasons("exact")[0]


def test_saved_arguments_of_true_size_are_the_callers() -> None:
    x, w = torch.randn(5, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    torch._dynamo.mark_dynamic(x, 0)
    y = Watch().compile(lambda x, w: x * w, buckets=8, poison=True)(x, w)
    assert {t.data_ptr() for t in y.grad_fn.saved_tensors} == {x.data_ptr(), w.data_ptr()}
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, w.detach().expand(5, 3))


def test_buckets() -> None:
    assert [round_up(size, "power_of_two") for size in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 4, 8, 1024]
    assert [round_up(size, 512) for size in (2, 512, 513, 4096)] == [512, 512, 1024, 4096]
    assert [round_up(size, (8, 20)) for size in (2, 8, 9, 20, 21)] == [8, 8, 20, 20, 21]
    assert round_up(7, "") == 7
    assert len({round_up(size, 512) for size in range(2, 4097)}) == 8


def test_a_weight_of_dynamic_sizes_has_gradients() -> None:
    """The backward is given a transposed weight: its strides say nothing of a program for rounded sizes."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w).sum(-1)

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="helion_tpu", dynamic=True, options={"buckets": "power_of_two"})
    for rows, columns in ((5, 6), (7, 9), (11, 3), (6, 7)):
        x, w = torch.randn(rows, 8, requires_grad=True), torch.randn(8, columns, requires_grad=True)
        mine, wanted = compiled(x, w), function(x, w)
        torch.testing.assert_close(mine, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(mine.sum(), (x, w)), torch.autograd.grad(wanted.sum(), (x, w)), rtol=1e-5, atol=1e-5
        )
