"""Biases that are computed of little wait for the rows that they are added to the scores of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from tests.cases.harness import capture, normalised
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.ir import chips, graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.materialized import together

V5E = chips.find("v5e")
BATCH, LENGTH, HEADS, WIDTH = 16, 512, 8, 64

Function = Callable[..., torch.Tensor]


def numbers(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(len(sizes))).to(torch.bfloat16)


def heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight).view(*x.shape[:2], HEADS, WIDTH).transpose(1, 2)


def by_distance(table: torch.Tensor) -> torch.Tensor:
    """[heads, queries, keys]: of a table of 32 distances."""
    place = torch.arange(LENGTH)
    far = (place[:, None] - place[None, :]).abs().clamp(max=31)
    return table[far].permute(2, 0, 1)


def attention(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    query = heads(x, weight)
    return F.scaled_dot_product_attention(query, query * 0.5, query + 1, bias, scale=1.0)


def one_layer(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return attention(x, weight, by_distance(table))


def two_layers(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    bias = by_distance(table)
    y = attention(x, weight, bias).transpose(1, 2).reshape(x.shape)
    return attention(y, weight, bias)


def read_before(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    bias = by_distance(table)
    return attention(x + bias.sum(), weight, bias)


def shared(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    near = table * 2
    return attention(x, weight, by_distance(near)) + near.sum()


def given(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return attention(x, weight, bias)


def of_more(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return attention(x, weight, bias * 2)


def fused(function: Function, chip: Chip, *last: int) -> tuple[fx.Graph, list[Action]]:
    inputs = numbers(BATCH, LENGTH, HEADS * WIDTH), numbers(HEADS * WIDTH, HEADS * WIDTH), numbers(*last)
    module = normalised(capture(function, *inputs))
    module.meta["chip"] = chip
    actions = FuseAttention()(module.graph)
    module.graph.lint()
    return module.graph, actions


@pytest.mark.parametrize("function", [one_layer, two_layers])
def test_a_bias_is_computed_when_the_rows_are_there(function: Function) -> None:
    graph, actions = fused(function, V5E, 32, HEADS)
    (there,) = graph.find_nodes(op="call_function", target=together)
    table, *rows = there.args
    assert isinstance(table, fx.Node) and table.op == "placeholder"
    assert rows and all(isinstance(row, fx.Node) and row.op == "call_function" for row in rows)
    calls = graphs.kernel_calls(graph)
    biases = {operands[-1] for operands in map(graphs.operands_of, calls)}
    assert len(biases) == 1 and all(there < bias for bias in biases if bias is not None)
    assert len(table.users) == 1
    assert [action.kind for action in actions].count("moved") == 1


@pytest.mark.parametrize(
    ("function", "last"),
    [
        (read_before, (32, HEADS)),
        (shared, (32, HEADS)),
        (given, (HEADS, LENGTH, LENGTH)),
        (of_more, (HEADS, LENGTH, LENGTH)),
    ],
)
def test_what_something_else_needs_or_what_is_not_smaller_does_not_wait(
    function: Function, last: tuple[int, ...]
) -> None:
    graph, _ = fused(function, V5E, *last)
    assert graphs.kernel_calls(graph) and not graph.find_nodes(op="call_function", target=together)


@pytest.mark.parametrize("chip", [chips.CPU, chips.find("tpu7x")], ids=lambda chip: chip.name)
def test_without_a_table_in_vmem_nothing_waits(chip: Chip) -> None:
    graph, _ = fused(one_layer, chip, 32, HEADS)
    assert graphs.kernel_calls(graph) and not graph.find_nodes(op="call_function", target=together)
