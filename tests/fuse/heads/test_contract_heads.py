"""Products of heads as contractions: the graph, values and gradients against eager, what is left alone, and bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch import nn

from tests.cases.harness import Record, capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import compiled, equal
from tpu_lowering import aot
from tpu_lowering.fuse.contract_heads import ContractBatches, ContractHeads
from tpu_lowering.fuse.heads.axes import runs
from tpu_lowering.ir import chips
from tpu_lowering.ir.contractions import contract
from tpu_lowering.lower.contractions import contract as in_jax
from tpu_lowering.passes.simplify_views import SimplifyViews

Function = Callable[..., Any]


def to_heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[b, s, m] times [h * d, m], as [b, h, s, d] of 3 heads."""
    return (x @ weight.mT).unflatten(-1, (3, -1)).transpose(1, 2)


def with_bias(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, weight, weight[:, 0].contiguous()).unflatten(-1, (3, -1)).transpose(1, 2)


def from_heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The inverse: [b, s, h, d] as heads of their own, permuted back and joined."""
    rows = (x.unflatten(-1, (2, -1)).transpose(1, 2) * 2).exp()
    return rows.transpose(1, 2).flatten(-2) @ weight.mT


def to_and_from(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return to_heads(x, weight).tanh().transpose(1, 2).flatten(-2) @ weight


def used_twice(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The heads, and the matrix that they were cut of."""
    product = x @ weight.mT
    return product.unflatten(-1, (3, -1)).transpose(1, 2).exp(), product.relu()


def used_in_two_orders(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    heads = (x @ weight.mT).unflatten(-1, (3, -1))
    return heads.permute(0, 2, 1, 3).exp(), heads.permute(2, 0, 3, 1).sin()


def of_a_permuted_weight(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Columns whose heads lie inside, as a checkpoint of another library has them."""
    inside = weight.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
    return (x @ inside.mT).sigmoid()


def channels_first(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x.transpose(1, 2).exp().transpose(1, 2)) @ weight.mT


def cut_in_three(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Columns of queries, keys and values side by side, each of two heads."""
    pieces = nn.functional.linear(x, weight, weight[:, 0].contiguous()).split(4, -1)
    query, key, value = (piece.unflatten(-1, (2, -1)).transpose(1, 2) for piece in pieces)
    return query.tanh() * key + value.exp()


def unbound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As vision transformers write it: [3, b, h, s, d]."""
    query, key, value = (x @ weight.mT).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query.tanh() * key + value.exp()


def fewer_keys(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of unequal pieces, one of which nobody uses, and one is used twice."""
    query, key, _ = (x @ weight.mT).split((6, 2, 4), -1)
    heads = query.unflatten(-1, (3, -1)).transpose(1, 2).sin()
    return heads * key[:, None] + key.unflatten(-1, (1, -1)).transpose(1, 2)


def every_other(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Columns of one head's queries, keys and values beside each other."""
    query, key, value = (x @ weight.mT).unflatten(-1, (2, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
    return query * key + value


def within_heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of each head of four columns the first, and the others turned in pairs, as latent attention has them."""
    plain, turned = with_bias(x, weight).split((2, 2), -1)
    return plain * torch.cat((turned[..., 1::2], -turned[..., 0::2]), -1)


FUNCTIONS: tuple[Function, ...] = (
    to_heads, with_bias, from_heads, to_and_from, used_twice, used_in_two_orders, of_a_permuted_weight,
    cut_in_three, unbound, fewer_keys, every_other, within_heads,
)  # fmt: skip


def arguments(sizes: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
    batch, length, width = sizes
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) / 4 for shape in ((batch, length, width), (12, width))]
    return [one.to(dtype) for one in drawn]


def observed(function: Function, given: Sequence[torch.Tensor], **options: Any) -> tuple[Record, list[tuple[Any, Any]]]:
    """(what was observed, pairs of results and of gradients with eager's)."""
    mine, theirs = ([x.detach().clone().requires_grad_() for x in given] for _ in range(2))
    run, record = compiled(function, **options)
    results, expected = (value if isinstance(value, tuple) else (value,) for value in (run(*mine), function(*theirs)))
    gradients = [torch.randn(one.shape, generator=torch.Generator().manual_seed(7)).to(one.dtype) for one in expected]
    torch.autograd.backward(results, gradients)
    torch.autograd.backward(expected, gradients)
    pairs = [*zip(results, expected, strict=True), *((a.grad, b.grad) for a, b in zip(mine, theirs, strict=True))]
    return record, pairs


def contractions(record: Record) -> int:
    return sum(graph.source.count("contract(") for graph in record.graphs.values())


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("sizes", [(2, 6, 10), (3, 5, 14)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_equals_eager(function: Function, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    record, pairs = observed(function, arguments(sizes, dtype), verify=True)
    assert contractions(record)
    equal(pairs, 2e-5 if dtype == torch.float32 else 4e-2)


def test_operands_of_other_strides() -> None:
    x, weight = arguments((4, 6, 10), torch.float32)
    given = [x.mT.contiguous().mT[::2], weight.mT.contiguous().mT]
    record, pairs = observed(to_and_from, given)
    assert contractions(record)
    equal(pairs, 2e-5)


def test_one_product_of_all_heads() -> None:
    inline(
        before_and_after(ContractHeads(), to_heads, (2, 6, 10), (12, 10), first=(SimplifyViews(),)),
        """\
%arg0_1: f32[12, 10] = input
%arg1_1: f32[2, 6, 10] = input
%permute_default: f32[10, 12] = aten.permute.default(%arg0_1, [1, 0])
%reshape_default: f32[12, 10] = aten.reshape.default(%arg1_1, [12, 10])
%mm: f32[12, 12] = aten.mm.default(%reshape_default, %permute_default)
%reshape_default_3: f32[2, 6, 3, 4] = aten.reshape.default(%mm, [2, 6, 3, 4])
%permute_default_1: f32[2, 3, 6, 4] = aten.permute.default(%reshape_default_3, [0, 2, 1, 3])
return (%permute_default_1)

contract_heads:
moved mm: one product over all axes of its heads, ace,bde->abcd: no copy permutes it

%arg0_1: f32[12, 10] = input
%arg1_1: f32[2, 6, 10] = input
%reshape_default_4: f32[3, 4, 10] = aten.reshape.default(%arg0_1, [3, 4, 10])
%contract: f32[2, 3, 6, 4] = contract('ace,bde->abcd', %arg1_1, %reshape_default_4)
return (%contract)""",
    )


def test_heads_joined_again() -> None:
    inline(
        before_and_after(ContractHeads(), from_heads, (2, 6, 10), (4, 10), first=(SimplifyViews(),)),
        """\
%arg0_1: f32[2, 6, 10] = input
%arg1_1: f32[4, 10] = input
%reshape_default: f32[2, 6, 2, 5] = aten.reshape.default(%arg0_1, [2, 6, 2, 5])
%permute_default: f32[2, 2, 6, 5] = aten.permute.default(%reshape_default, [0, 2, 1, 3])
%mul: f32[2, 2, 6, 5] = aten.mul.Tensor(%permute_default, 2)
%exp: f32[2, 2, 6, 5] = aten.exp.default(%mul)
%permute_default_1: f32[2, 6, 2, 5] = aten.permute.default(%exp, [0, 2, 1, 3])
%permute_default_2: f32[10, 4] = aten.permute.default(%arg1_1, [1, 0])
%reshape_default_4: f32[12, 10] = aten.reshape.default(%permute_default_1, [12, 10])
%mm: f32[12, 4] = aten.mm.default(%reshape_default_4, %permute_default_2)
%reshape_default_3: f32[2, 6, 4] = aten.reshape.default(%mm, [2, 6, 4])
return (%reshape_default_3)

contract_heads:
moved mm: one product over all axes of its heads, adbe,cde->abc: no copy permutes it

%arg0_1: f32[2, 6, 10] = input
%arg1_1: f32[4, 10] = input
%reshape_default: f32[2, 6, 2, 5] = aten.reshape.default(%arg0_1, [2, 6, 2, 5])
%permute_default: f32[2, 2, 6, 5] = aten.permute.default(%reshape_default, [0, 2, 1, 3])
%mul: f32[2, 2, 6, 5] = aten.mul.Tensor(%permute_default, 2)
%exp: f32[2, 2, 6, 5] = aten.exp.default(%mul)
%reshape_default_5: f32[4, 2, 5] = aten.reshape.default(%arg1_1, [4, 2, 5])
%contract: f32[2, 6, 4] = contract('adbe,cde->abc', %exp, %reshape_default_5)
return (%contract)""",
    )


# Products of batches of matrices -------------------------------------------------------------------------
def shared_by_heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Two heads read one key."""
    query = x.unflatten(-1, (2, -1)).transpose(1, 2)
    key = (x @ weight[: query.shape[-1]].mT).sin()[:, None]
    return query @ key.expand_as(query).mT


def equal_heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Both factors are the same for three heads: so is the product."""
    rows = x @ weight.mT
    query, key = (one[:, None].expand(-1, 3, -1, -1).flatten(0, 1) for one in (rows.cos(), rows.sin()))
    return (query @ key.mT).unflatten(0, (-1, 3)).transpose(1, 2)


def repeated_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Four tokens with the same features."""
    return (x[:, :, None].expand(-1, -1, 4, -1).flatten(1, 2) @ weight.mT).tanh()


def moved_heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Heads between tokens and features on both sides, as ``einsum`` permutes them."""
    heads = (x @ weight.mT).unflatten(-1, (2, -1))
    return torch.einsum("bqhd,bkhd->bqkh", heads.cos(), heads.sin())


def one_token(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Torch repeats the weight for each matrix of a batch."""
    return to_heads(x[:, :1], weight)


def summed_over_repeats(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What is repeated is summed over: each is counted."""
    wide = (x @ weight.mT)[..., None].expand(-1, -1, -1, 2).flatten(2)
    return torch.bmm(wide, wide.mT)


BATCHED = (shared_by_heads, equal_heads, repeated_rows, moved_heads)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("sizes", [(2, 6, 10), (3, 5, 14)])
@pytest.mark.parametrize("function", [*BATCHED, summed_over_repeats])
def test_batches_equal_eager(function: Function, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    record, pairs = observed(function, arguments(sizes, dtype), verify=True)
    assert contractions(record) or function is summed_over_repeats
    equal(pairs, 2e-5 if dtype == torch.float32 else 4e-2)


def test_a_weight_is_not_repeated_for_one_token() -> None:
    x, weight = arguments((2, 6, 10), torch.float32)
    run, record = compiled(one_token)
    torch.testing.assert_close(run(x, weight), one_token(x, weight))
    assert contractions(record) == 1 and "expand" not in record.graphs["inference"].source


def test_what_both_factors_repeat_is_computed_once() -> None:
    inline(
        before_and_after(ContractBatches(), equal_heads, (2, 6, 10), (12, 10), first=(SimplifyViews(),)),
        """\
%arg0_1: f32[12, 10] = input
%arg1_1: f32[2, 6, 10] = input
%permute_default: f32[10, 12] = aten.permute.default(%arg0_1, [1, 0])
%reshape_default: f32[12, 10] = aten.reshape.default(%arg1_1, [12, 10])
%mm: f32[12, 12] = aten.mm.default(%reshape_default, %permute_default)
%reshape_default_1: f32[2, 6, 12] = aten.reshape.default(%mm, [2, 6, 12])
%cos: f32[2, 6, 12] = aten.cos.default(%reshape_default_1)
%sin: f32[2, 6, 12] = aten.sin.default(%reshape_default_1)
%reshape_default_2: f32[2, 1, 6, 12] = aten.reshape.default(%cos, [2, 1, 6, 12])
%expand: f32[2, 3, 6, 12] = aten.expand.default(%reshape_default_2, [-1, 3, -1, -1])
%reshape_default_3: f32[6, 6, 12] = aten.reshape.default(%expand, [6, 6, 12])
%reshape_default_4: f32[2, 1, 6, 12] = aten.reshape.default(%sin, [2, 1, 6, 12])
%expand_1: f32[2, 3, 6, 12] = aten.expand.default(%reshape_default_4, [-1, 3, -1, -1])
%reshape_default_5: f32[6, 6, 12] = aten.reshape.default(%expand_1, [6, 6, 12])
%permute_default_1: f32[6, 12, 6] = aten.permute.default(%reshape_default_5, [0, 2, 1])
%bmm: f32[6, 6, 6] = aten.bmm.default(%reshape_default_3, %permute_default_1)
%reshape_default_9: f32[2, 3, 6, 6] = aten.reshape.default(%bmm, [2, 3, 6, 6])
%permute_default_2: f32[2, 6, 3, 6] = aten.permute.default(%reshape_default_9, [0, 2, 1, 3])
return (%permute_default_2)

contract_batches:
moved bmm: one product over all axes of its heads, abd,acd->abc: each is computed once

%arg0_1: f32[12, 10] = input
%arg1_1: f32[2, 6, 10] = input
%permute_default: f32[10, 12] = aten.permute.default(%arg0_1, [1, 0])
%reshape_default: f32[12, 10] = aten.reshape.default(%arg1_1, [12, 10])
%mm: f32[12, 12] = aten.mm.default(%reshape_default, %permute_default)
%reshape_default_1: f32[2, 6, 12] = aten.reshape.default(%mm, [2, 6, 12])
%cos: f32[2, 6, 12] = aten.cos.default(%reshape_default_1)
%sin: f32[2, 6, 12] = aten.sin.default(%reshape_default_1)
%contract: f32[2, 6, 6] = contract('abd,acd->abc', %cos, %sin)
%reshape_default_10: f32[2, 6, 1, 6] = aten.reshape.default(%contract, [2, 6, 1, 6])
%expand_default: f32[2, 6, 3, 6] = aten.expand.default(%reshape_default_10, [2, 6, 3, 6])
return (%expand_default)""",
    )


def test_a_shared_factor_is_not_repeated() -> None:
    inline(
        before_and_after(ContractBatches(), shared_by_heads, (2, 6, 10), (12, 10), first=(SimplifyViews(),)),
        """\
%arg0_1: f32[2, 6, 10] = input
%arg1_1: f32[12, 10] = input
%reshape_default: f32[2, 6, 2, 5] = aten.reshape.default(%arg0_1, [2, 6, 2, 5])
%permute_default: f32[2, 2, 6, 5] = aten.permute.default(%reshape_default, [0, 2, 1, 3])
%read_box: f32[5, 10] = read_box(%arg1_1, box('0:5, 0:10'))
%permute_default_1: f32[10, 5] = aten.permute.default(%read_box, [1, 0])
%reshape_default_1: f32[12, 10] = aten.reshape.default(%arg0_1, [12, 10])
%mm: f32[12, 5] = aten.mm.default(%reshape_default_1, %permute_default_1)
%reshape_default_2: f32[2, 6, 5] = aten.reshape.default(%mm, [2, 6, 5])
%sin: f32[2, 6, 5] = aten.sin.default(%reshape_default_2)
%reshape_default_3: f32[2, 1, 6, 5] = aten.reshape.default(%sin, [2, 1, 6, 5])
%expand: f32[2, 2, 6, 5] = aten.expand.default(%reshape_default_3, [2, 2, 6, 5])
%permute_default_2: f32[2, 2, 5, 6] = aten.permute.default(%expand, [0, 1, 3, 2])
%reshape_default_4: f32[4, 6, 5] = aten.reshape.default(%permute_default, [4, 6, 5])
%reshape_default_5: f32[4, 5, 6] = aten.reshape.default(%permute_default_2, [4, 5, 6])
%bmm: f32[4, 6, 6] = aten.bmm.default(%reshape_default_4, %reshape_default_5)
%reshape_default_6: f32[2, 2, 6, 6] = aten.reshape.default(%bmm, [2, 2, 6, 6])
return (%reshape_default_6)

contract_batches:
moved bmm: one product over all axes of its heads, acbe,ade->abcd: each is computed once

%arg0_1: f32[2, 6, 10] = input
%arg1_1: f32[12, 10] = input
%read_box: f32[5, 10] = read_box(%arg1_1, box('0:5, 0:10'))
%permute_default_1: f32[10, 5] = aten.permute.default(%read_box, [1, 0])
%reshape_default_1: f32[12, 10] = aten.reshape.default(%arg0_1, [12, 10])
%mm: f32[12, 5] = aten.mm.default(%reshape_default_1, %permute_default_1)
%reshape_default_2: f32[2, 6, 5] = aten.reshape.default(%mm, [2, 6, 5])
%sin: f32[2, 6, 5] = aten.sin.default(%reshape_default_2)
%reshape_default_7: f32[2, 6, 2, 5] = aten.reshape.default(%arg0_1, [2, 6, 2, 5])
%contract: f32[2, 2, 6, 6] = contract('acbe,ade->abcd', %reshape_default_7, %sin)
return (%contract)""",
    )


# What stays ---------------------------------------------------------------------------------------------
def one_head(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight.mT)[:, None].transpose(1, 2)


def cut_alone(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight.mT).unflatten(-1, (3, -1)) * 2


def transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x.flatten(0, 1) @ weight.mT).mT.exp()


def added_matrix(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = x.flatten(0, 1)
    return torch.addmm(rows @ weight.mT, rows, weight.mT).reshape(*x.shape[:2], 3, -1)


def scaled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = torch.addmm(weight[:, 0], x.flatten(0, 1), weight.mT, alpha=2)
    return rows.reshape(*x.shape[:2], 3, -1).transpose(1, 2)


def of_no_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return to_heads(x[:0], weight)


@pytest.mark.parametrize("function", [one_head, cut_alone, transposed, added_matrix, scaled, of_no_rows])
def test_what_is_not_moved_stays(function: Function) -> None:
    module = normalised(capture(function, *arguments((2, 6, 10), torch.float32)))
    before = [node.name for node in module.graph.nodes]
    assert ContractHeads()(module.graph) == []
    assert [node.name for node in module.graph.nodes] == before


def test_a_view_that_splits_within_a_row_stays() -> None:
    """12 columns of 6 rows as 8 of 9: no axis of the product is one of the view's."""

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x[0] @ weight.mT).reshape(8, 9).mT.reshape(9, 4, 2).transpose(0, 1)

    module = normalised(capture(function, *arguments((2, 6, 10), torch.float32)))
    assert ContractHeads()(module.graph) == []


def test_nothing_changes_on_a_cpu() -> None:
    x, weight = arguments((2, 6, 10), torch.float32)
    record = Record()
    run = torch.compile(to_heads, backend=functools.partial(_backend, record=record), fullgraph=True)
    torch._dynamo.reset()
    run(x, weight)
    assert contractions(record) == 0


def _backend(module: Any, given: Any, record: Record) -> Any:
    from tpu_lowering.backend import helion_tpu

    return helion_tpu(module, given, options={}, observers=[record])


def in_many_pieces(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Six products would read the rows six times."""
    first, *others = (x @ weight.mT).unflatten(-1, (2, 6)).transpose(1, 2).unbind(-1)
    return sum(others, first)


def used_whole_too(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    product = x @ weight.mT
    return product[..., :4].unflatten(-1, (2, -1)).transpose(1, 2).sum() + product


@pytest.mark.parametrize("function", [in_many_pieces, used_whole_too])
def test_other_pieces_stay_pieces(function: Function) -> None:
    given = arguments((2, 6, 10), torch.float32)
    run, record = compiled(function, verify=True)
    torch.testing.assert_close(run(*given), function(*given), rtol=2e-5, atol=2e-5)
    assert record.source.count("contract(") + record.source.count("aten.mm(") == 1


# The operator -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("equation", ["abc,dec->adbe", "abcd,ebd->ace", "ab,cb->ca", "abc,bd->dac"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_rule_is_the_operator(equation: str, dtype: torch.dtype) -> None:
    from tpu_lowering import compat
    from tpu_lowering.ir import arrays
    from tpu_lowering.ir.types import TensorType

    sizes = dict(zip("abcde", (2, 3, 4, 5, 6), strict=True))
    left, right = equation.partition("->")[0].split(",")
    given = [torch.randn([sizes[axis] for axis in term]).to(dtype) for term in (left, right)]
    expected = contract(equation, *given)
    bias = torch.randn(expected.shape[-1:]).to(dtype)
    with compat.enable_x64(True):
        for more in ([], [bias]):
            result = in_jax(equation, *map(arrays.to_jax, [*given, *more]), out=TensorType.of(expected))
            torch.testing.assert_close(arrays.borrowed(result), contract(equation, *given, *more))


# Bytes --------------------------------------------------------------------------------------------------
class Block(nn.Module):
    """Attention as models write it, with shared heads of keys."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        of = functools.partial(nn.Linear, bias=bias, dtype=torch.bfloat16)
        self.query, self.key, self.value, self.output = of(1024, 1024), of(1024, 256), of(1024, 256), of(1024, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [one(x).unflatten(-1, (-1, 128)).transpose(1, 2) for one in (self.query, self.key, self.value)]
        seen = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return self.output(seen.transpose(1, 2).flatten(-2))


@pytest.mark.sweep
@pytest.mark.parametrize("target", ["tpu7x", "v5e"])
def test_heads_are_written_once(target: str) -> None:
    """Without the pass the queries, keys, values and results, larger than VMEM, are each written and read once more."""
    model, x = Block(True).requires_grad_(False), torch.zeros(64, 1024, 1024, dtype=torch.bfloat16)
    chip, moved = chips.find(target), list[int]()
    for passes in ("simplify_views,contract_heads,fuse_attention", "simplify_views,fuse_attention"):
        captured = aot.capture(model, (x,), {}, chip, {"passes": passes}, ())
        moved.append(aot.compile_captured(captured, chip, True, simulate=False).hbm_bytes)
    copied = 2 * (128 + 32 + 32 + 128)
    assert moved[1] - moved[0] > 0.7 * copied * 2**20


def test_runs_of_axes() -> None:
    """A matrix has two, however it is cut; heads have four."""
    from tpu_lowering.fuse.heads.axes import product_of

    module = normalised(capture(to_heads, *arguments((2, 6, 10), torch.float32)))
    (product,) = [found for node in module.graph.nodes if (found := product_of(node)) is not None]
    assert [runs(product.left), runs(product.right)] == [2, 2]
    assert list(map(runs, product.results)) == [4]
