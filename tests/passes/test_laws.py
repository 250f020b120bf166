"""Laws that every pass obeys, on graphs captured from real functions and on what earlier passes left of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from tests.cases.case_kernels import (
    accumulate,
    add_into,
    column_max_into,
    double_into,
    exp_and_neg_into,
    exp_first_half,
    exp_into,
    helion_accumulate,
    helion_exp_into,
    helion_gate_flat_into,
    split_rows,
    step,
)
from tests.cases.harness import capture, normalised
from tpu_lowering import errors, pipeline
from tpu_lowering.ir import interpreter, legal
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.passes.base import Pass

FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {}


def case(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


@case
def no_kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    out[:4] = x[:4]
    out[4:].copy_(y[4:] * 2)
    return out.t().contiguous()


@case
def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, second = torch.empty_like(x), torch.empty_like(x)
    exp_into(x, first)
    add_into(first, y, second)
    return second.sin()


@case
def helion_chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    helion_exp_into(x, out)
    helion_accumulate(y, out)
    return out


@case
def flat_views(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out, other = torch.empty_like(x), torch.empty(128)
    helion_gate_flat_into(x.view(-1), y.view(-1), out.view(-1))
    helion_gate_flat_into(y.view(-1), out.view(-1), other)
    return out, other


@case
def fills(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    whole, half, summed, largest = torch.zeros_like(x), torch.ones_like(x), torch.full_like(x, 2), x.new_zeros(1, 16)
    exp_into(x, whole)
    exp_first_half(y, half)
    accumulate(x, summed)
    column_max_into(y, largest)
    return whole, half, summed, largest


@case
def halves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty(16, 16)
    exp_into(y, out[8:])
    exp_into(x, out[:8])
    return out


@case
def halves_overwritten_and_read(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.zeros(16, 16)
    exp_into(y, out[8:])
    between = out[6:10] + 1
    exp_into(x, out[4:12])
    accumulate(x, out[:8])
    return between, out


@case
def views_of_one_base(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    kv = torch.empty(2, 8, 16)
    exp_and_neg_into(x, kv[0], kv[1])
    double_into(y.t(), kv[1].t())
    return kv.transpose(0, 1)


@case
def inputs_mutated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    step(x, y, out)
    exp_into(out, y)
    return out


@case
def list_of_outs(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    outs = [torch.empty(3, 16), torch.empty(5, 16)]
    split_rows(x, outs)
    return [outs[0], outs[1] + y[:5]]


@case
def undefined_contents_used(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    junk, total = torch.empty_like(x), torch.empty_like(x)
    accumulate(x, total)
    return junk + 1, total


@case
def softmax_of_products(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    product = x * y
    return torch.softmax(x @ y.t(), -1), product * torch.rsqrt(product.pow(2).mean(-1, keepdim=True) + 1e-6)


@case
def rows_of_columns(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(0, keepdim=True)
    return centred / (1 + centred.abs().amax(0, keepdim=True)) + y.cumsum(-1)


@case
def work_around_a_kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    helion_exp_into(x * 2, out)
    return out.relu() + y


@case
def attention(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    query, key = x.view(1, 1, *x.shape), y.view(1, 1, *y.shape)
    return F.scaled_dot_product_attention(query, key, key * 2)


@case
def dropped_attention(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    query, key = x.view(2, 2, 128, 64), y.view(2, 2, 128, 64)
    return F.scaled_dot_product_attention(query, key, key, dropout_p=0.5)


@case
def heads(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    product = x.view(2, -1, x.shape[1]) @ y.mT
    return product.unflatten(-1, (4, -1)).transpose(1, 2).exp()


@case
def scattered(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, (y[:, 0].abs() * 50).long()) * torch.softmax(y, -1)


@case
def placed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 2).scatter(1, (y[:, :1].abs() * 2).long(), -1.0) * x


@case
def equal_parts(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1) * y + torch.log_softmax(x, -1)


@case
def long_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x + y, -1)


@case
def experts(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    ends = torch.arange(1, 3, dtype=torch.int32) * 8
    rows, weights = x.bfloat16(), y.bfloat16().view(2, -1, 16)
    return F.grouped_mm(rows, weights.mT, offs=ends)


@case
def permuted_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    places = (y[:, 0].abs() * 2).long().clamp(max=7)
    return (x.bfloat16() * y[:, :1])[places].view(-1, 2, 16).sum(1)


@case
def last_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.linear(x.exp().view(2, -1, x.shape[1]), y).tanh()[:, -1]


@case
def biases_by_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[(y.abs() * 2).long().clamp(max=7)].permute(2, 0, 1)


@case
def shared_keys_beside(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = x.view(2, 128, 64)
    plain = F.linear(rows, y[:64]).unflatten(-1, (2, 32)).transpose(1, 2)
    key = torch.cat((plain, rows[:, None, :, :32].expand(-1, 2, -1, -1)), -1)
    query = rows[:, None].repeat(1, 2, 1, 1)
    return F.scaled_dot_product_attention(query, key, query)


@case
def sums_of_intervals(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    behind = torch.ones(16, 16, dtype=torch.bool).tril(-1)
    return x[..., None].expand(8, 16, 16).masked_fill(~behind, 0).cumsum(-2) * y[:, None]


@case
def batches_that_share(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    left, right = x.view(2, 4, 16).sin(), y.view(2, 16, 4).cos()[:, None].expand(-1, 3, -1, -1)
    return torch.bmm(left[:, None].expand(-1, 3, -1, -1).flatten(0, 1), right.flatten(0, 1))


@case
def gated_layer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x @ y.mT).sigmoid() * (y @ x.mT)) @ x


@case
def added_twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[:4].index_put((torch.arange(8) // 2,), y, accumulate=True) + torch.zeros_like(x[:4]).index_put(
        (torch.arange(8) // 2,), y, accumulate=True
    )


SHAPES = {
    "softmax_of_products": (128, 256),
    "rows_of_columns": (100, 300),
    "attention": (256, 64),
    "dropped_attention": (512, 64),
    "shared_keys_beside": (256, 64),
    "scattered": (100, 300),
    "placed": (8, 16),
    "equal_parts": (100, 300),
    "experts": (16, 16),
    "long_rows": (2, 1 << 21),
}
REFUSALS = ("kept", "unfused")
FUSION = pipeline.fusion()
IN_ORDER: tuple[Pass, ...] = (*pipeline.BUFFERS, *FUSION)
PASSES = tuple({pass_.name: pass_ for pass_ in IN_ORDER}.values())


@functools.cache
def captured(name: str) -> fx.GraphModule:
    shape = SHAPES.get(name, (8, 16))
    return capture(FUNCTIONS[name], torch.ones(shape), torch.ones(shape))


def graph_before(pass_: Pass, name: str, after_others: bool) -> fx.GraphModule:
    """A captured graph, either as it was normalised or as the whole pipeline left it before this pass's last turn."""
    module = normalised(captured(name))
    last = max(at for at, other in enumerate(IN_ORDER) if other == pass_)
    for earlier in IN_ORDER[:last] if after_others else ():
        earlier(module.graph)
    return module


CASES = [
    (pass_, name, after_others)
    for pass_ in PASSES
    for name in FUNCTIONS
    for after_others in (False, True)
    if (after_others if pass_ in FUSION else name not in SHAPES)
]
on_graphs = pytest.mark.parametrize(
    ("pass_", "name", "after_others"),
    CASES,
    ids=[f"{p.name}-{name}-{'in order' if o else 'alone'}" for p, name, o in CASES],
)
of_passes = pytest.mark.parametrize("pass_", PASSES, ids=lambda pass_: pass_.name)


@on_graphs
def test_running_twice_is_running_once(pass_: Pass, name: str, after_others: bool) -> None:
    module = graph_before(pass_, name, after_others)
    pass_(module.graph)
    once = print_graph(module.graph)
    again = pass_(module.graph)
    assert print_graph(module.graph) == once
    assert [action for action in again if action.kind not in REFUSALS] == []


@on_graphs
def test_graph_stays_normal_and_keeps_its_edge(pass_: Pass, name: str, after_others: bool) -> None:
    """Placeholders keep their names, order and types; results keep their number, shapes and dtypes."""
    module = graph_before(pass_, name, after_others)
    legal.check(module.graph, pipeline.NORMAL, "normalising")
    before = edge(module.graph)
    pass_(module.graph)
    module.graph.lint()
    legal.check(module.graph, pipeline.NORMAL, pass_.name)
    assert edge(module.graph) == before


def edge(graph: fx.Graph) -> tuple[list[Any], list[Any]]:
    placeholders = [(node.name, *described(node)) for node in graph.nodes if node.op == "placeholder"]
    return placeholders, [described(node) for node in graph.output_node().args[0]]


def described(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape), node.meta["val"].dtype


@on_graphs
def test_values_stay(pass_: Pass, name: str, after_others: bool) -> None:
    """On the reference interpreter, with undefined memory poisoned."""
    module = graph_before(pass_, name, after_others)
    samples = [interpreter.random_arguments(module.graph, seed) for seed in (1, 2)]
    before = [interpreter.interpret(module, sample) for sample in samples]
    pass_(module.graph)
    after = [interpreter.interpret(module, sample) for sample in samples]
    assert [interpreter.differing(*pair) for pair in zip(before, after, strict=True)] == [None, None]


@on_graphs
def test_actions_name_a_node_and_its_source_line(pass_: Pass, name: str, after_others: bool) -> None:
    """Every action says which node and, unless that is an input, which line of the user's it stands for."""
    module = graph_before(pass_, name, after_others)
    nodes = {node.name: node.op for node in module.graph.nodes}
    for action in pass_(module.graph):
        assert action.node in nodes
        assert action.kind in ("fresh", "removed", "moved", "fused", *REFUSALS) and action.reason
        assert action.code in ("", *errors.CODES)
        assert (action.code != "") or action.kind not in REFUSALS
        if nodes[action.node] != "placeholder":
            assert re.match(r"(test_laws|case_kernels)\.py:\d+ in \w+: .+", action.where), action


@on_graphs
def test_new_nodes_have_types_and_source_lines(pass_: Pass, name: str, after_others: bool) -> None:
    module = graph_before(pass_, name, after_others)
    before = {node.name for node in module.graph.nodes}
    pass_(module.graph)
    for node in module.graph.nodes:
        if node.name not in before:
            assert node.meta["val"] is not None and node.meta["stack_trace"], node


@of_passes
def test_pass_changes_one_of_the_graphs(pass_: Pass) -> None:
    """The functions above are no vacuous sample."""

    def changes(name: str) -> bool:
        module = graph_before(pass_, name, after_others=pass_ in FUSION)
        before = print_graph(module.graph)
        pass_(module.graph)
        return print_graph(module.graph) != before

    assert any(map(changes, FUNCTIONS))
