"""Factors of products of batches that are pointwise work on what is repeated: the graph, values, what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tpu_lowering.fuse.contract_heads import ContractBatches
from tpu_lowering.ir.contractions import contract
from tpu_lowering.passes.simplify_views import SimplifyViews

Function = Callable[..., torch.Tensor]


def shared(x: torch.Tensor, times: int = 3) -> torch.Tensor:
    """[b, s, g, n] with each of g three times in a row."""
    return x[:, :, :, None].expand(-1, -1, -1, times, -1).flatten(2, 3)


def decayed(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Keys [b, s, g, n] that heads share, by a number of each head [b, h, s], times values [b, s, h, p]."""
    keys = shared(x) * y.exp().permute(0, 2, 1)[..., None]
    return torch.einsum("bshn,bshp->bhpn", keys, z)


def scores(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Products of shared keys, weighted for each head, times values; the result by a number of each row."""
    made = torch.einsum("blhn,bshn->blsh", shared(x), shared(x.sin()))
    weights = made * (y[..., :, None] - y[..., None, :]).exp().permute(0, 2, 3, 1)
    return torch.einsum("blsh,bshp->blhp", weights, z) * y.permute(0, 2, 1)[..., None] + 1


def in_two_steps(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    keys = (shared(x).double() * 2).to(z.dtype) + y.permute(0, 2, 1)[..., None].relu()
    return torch.einsum("bshn,bshp->bhpn", keys, z)


def added_to_another(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Two contractions whose heads are cut, and what is computed of both."""
    keys = shared(x) * y.permute(0, 2, 1)[..., None]
    first, second = torch.einsum("bshn,bshp->bhpn", keys, z), torch.einsum("bshn,bshp->bhpn", shared(x), z.cos())
    return (first + second).tanh() * y[:, :, :1, None]


FUNCTIONS = (decayed, scores, in_two_steps, added_to_another)


def arguments(batch: int, length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, length, 2, 5), (batch, 6, length), (batch, length, 6, 7))
    return [(torch.randn(shape, generator=generator) / 2).to(dtype) for shape in shapes]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("sizes", [(2, 8), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_eager(function: Function, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    record, pairs = trained(function, arguments(*sizes, dtype), verify=True)
    assert "contract(" in record.graphs["forward"].source
    equal(pairs, 2e-5 if dtype == torch.float32 else 6e-2)


def test_what_is_repeated_is_broadcast() -> None:
    given = [tuple(one.shape) for one in arguments(2, 4, torch.float32)]
    inline(
        before_and_after(ContractBatches(), decayed, *given, first=(SimplifyViews(),)),
        """\
%arg0_1: f32[2, 4, 2, 5] = input
%arg1_1: f32[2, 6, 4] = input
%arg2_1: f32[2, 4, 6, 7] = input
%reshape_default: f32[2, 4, 2, 1, 5] = aten.reshape.default(%arg0_1, [2, 4, 2, 1, 5])
%expand: f32[2, 4, 2, 3, 5] = aten.expand.default(%reshape_default, [-1, -1, -1, 3, -1])
%reshape_default_1: f32[2, 4, 6, 5] = aten.reshape.default(%expand, [2, 4, 6, 5])
%exp: f32[2, 6, 4] = aten.exp.default(%arg1_1)
%permute: f32[2, 4, 6] = aten.permute.default(%exp, [0, 2, 1])
%reshape_default_2: f32[2, 4, 6, 1] = aten.reshape.default(%permute, [2, 4, 6, 1])
%mul: f32[2, 4, 6, 5] = aten.mul.Tensor(%reshape_default_1, %reshape_default_2)
%reshape_default_3: f32[2, 4, 6, 5, 1] = aten.reshape.default(%mul, [2, 4, 6, 5, 1])
%reshape_default_4: f32[2, 4, 6, 7, 1] = aten.reshape.default(%arg2_1, [2, 4, 6, 7, 1])
%permute_default: f32[2, 6, 7, 4, 1] = aten.permute.default(%reshape_default_4, [0, 2, 3, 1, 4])
%reshape_default_5: f32[12, 7, 4] = aten.reshape.default(%permute_default, [12, 7, 4])
%permute_default_1: f32[2, 6, 4, 5, 1] = aten.permute.default(%reshape_default_3, [0, 2, 1, 3, 4])
%reshape_default_6: f32[12, 4, 5] = aten.reshape.default(%permute_default_1, [12, 4, 5])
%bmm: f32[12, 7, 5] = aten.bmm.default(%reshape_default_5, %reshape_default_6)
%reshape_default_7: f32[2, 6, 7, 1, 5] = aten.reshape.default(%bmm, [2, 6, 7, 1, 5])
%permute_5: f32[2, 6, 7, 5, 1] = aten.permute.default(%reshape_default_7, [0, 1, 2, 4, 3])
%reshape_default_8: f32[2, 6, 7, 5] = aten.reshape.default(%permute_5, [2, 6, 7, 5])
return (%reshape_default_8)

contract_batches:
moved bmm: one product over all axes of its heads, afbcd,abcfe->abcde: no copy permutes it

%arg0_1: f32[2, 4, 2, 5] = input
%arg1_1: f32[2, 6, 4] = input
%arg2_1: f32[2, 4, 6, 7] = input
%exp: f32[2, 6, 4] = aten.exp.default(%arg1_1)
%reshape_default_9: f32[2, 4, 2, 3, 7] = aten.reshape.default(%arg2_1, [2, 4, 2, 3, 7])
%permute_default_2: f32[2, 2, 4, 5] = aten.permute.default(%arg0_1, [0, 2, 1, 3])
%reshape_default_10: f32[2, 2, 1, 4, 5] = aten.reshape.default(%permute_default_2, [2, 2, 1, 4, 5])
%reshape_default_11: f32[2, 2, 3, 4] = aten.reshape.default(%exp, [2, 2, 3, 4])
%reshape_default_12: f32[2, 2, 3, 4, 1] = aten.reshape.default(%reshape_default_11, [2, 2, 3, 4, 1])
%mul_tensor: f32[2, 2, 3, 4, 5] = aten.mul.Tensor(%reshape_default_10, %reshape_default_12)
%contract: f32[2, 2, 3, 7, 5] = contract('afbcd,abcfe->abcde', %reshape_default_9, %mul_tensor)
%reshape_default_13: f32[2, 6, 7, 5] = aten.reshape.default(%contract, [2, 6, 7, 5])
return (%reshape_default_13)""",
    )


def test_a_result_is_joined_last() -> None:
    """What is computed of a contraction is computed before its heads are joined."""
    graph = contracted(scores)
    last = [node for node in graph.nodes if node.op == "call_function"][-1]
    assert str(last.target) == "aten.reshape.default"
    assert largest_between(graph) == []


def largest_between(graph: Any) -> list[str]:
    """Reshapes of contractions that pointwise work reads."""
    return [
        user.name
        for node in graph.find_nodes(op="call_function", target=contract)
        for user in node.users
        if str(user.target) == "aten.reshape.default" and any("aten." in str(one.target) for one in user.users)
    ]


def contracted(function: Function) -> Any:
    module = normalised(capture(function, *arguments(2, 4, torch.float32)))
    SimplifyViews()(module.graph)
    ContractBatches()(module.graph)
    return module.graph


def read_twice(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    keys = shared(x) * y.permute(0, 2, 1)[..., None]
    return torch.einsum("bshn,bshp->bhpn", keys, z) + keys.sum()


def repeated_whole(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Nothing but what is repeated along the sum."""
    keys = (x[:, :1, :, None].expand(-1, z.shape[1], -1, 3, -1).flatten(2, 3) * 2).sin()
    return torch.einsum("bshn,bshp->bhpn", keys, z + y[:, :1, :1, None])


@pytest.mark.parametrize("function", [read_twice, repeated_whole])
def test_computed_as_it_is_written(function: Function) -> None:
    """A factor that something else reads, or that has no axis of the sum, stays a value of its own."""
    record, pairs = trained(function, arguments(2, 4, torch.float32), verify=True)
    equal(pairs, 2e-5)
    graph = contracted(function)
    (product,) = graph.find_nodes(op="call_function", target=contract)
    assert len(graph.find_nodes(op="call_function", target=contract)) == 1
    assert "contract(" in record.graphs["forward"].source
    shape = product.args[1].meta["val"].shape
    assert 6 in shape or len(shape) <= 4
