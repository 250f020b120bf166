"""Laws that every pass obeys, on graphs captured from real functions and on what earlier passes left of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
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
from tpu_lowering.ir.actions import Action
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
def decayed_keys(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Keys that heads share, by numbers of each head."""
    keys = x.view(2, 4, 2, 1, 8).expand(-1, -1, -1, 3, -1).flatten(2, 3) * y.view(-1)[:48].view(2, 4, 6, 1)
    return torch.einsum("bshn,bshp->bhpn", keys, keys.cos()) * y.view(-1)[:12].view(2, 6, 1, 1)


@case
def tokens_before(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.silu(F.conv1d(x.view(2, 4, 16), y[:4, None, :4], padding=3, groups=4)[..., :16])


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


LAST = {pass_.name: at for at, pass_ in enumerate(IN_ORDER)}
"""The last turn of each pass in the pipeline."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_pass_keeps_the_laws_in_order(name: str) -> None:
    """Each pass in its last turn, on what those before it left."""
    graph = Watched(name)
    for at, pass_ in enumerate(IN_ORDER):
        if at == LAST[pass_.name] and (pass_ in FUSION or name not in SHAPES):
            graph.run(pass_)
        else:
            graph.run_unwatched(pass_)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in SHAPES])
def test_every_pass_on_buffers_keeps_the_laws_alone(name: str) -> None:
    """Each on the graph as it was normalised."""
    for pass_ in PASSES:
        if pass_ not in FUSION:
            Watched(name).run(pass_)


class Watched:
    """A captured graph on which passes run, and keep the laws."""

    def __init__(self, name: str) -> None:
        self.module = normalised(captured(name))
        self.graph = self.module.graph
        self.samples = [interpreter.random_arguments(self.graph, seed) for seed in (1, 2)]
        self.values = self.computed()

    def computed(self) -> list[Any]:
        """On the reference interpreter, with undefined memory poisoned."""
        return [interpreter.interpret(self.module, sample) for sample in self.samples]

    def run_unwatched(self, pass_: Pass) -> None:
        if changes(pass_, self.graph):
            self.values = self.computed()

    def run(self, pass_: Pass) -> None:
        nodes = {node.name: node.op for node in self.graph.nodes}
        before, text = edge(self.graph), print_graph(self.graph)
        legal.check(self.graph, pipeline.NORMAL, "normalising")
        actions = pass_(self.graph)
        self.graph.lint()
        legal.check(self.graph, pipeline.NORMAL, pass_.name)
        assert edge(self.graph) == before, pass_.name
        actions_name_a_node_and_its_source_line(actions, nodes)
        new_nodes_have_types_and_source_lines(self.graph, nodes)
        if (changed := print_graph(self.graph)) != text:
            values, self.values = self.values, self.computed()
            found = [interpreter.differing(*pair) for pair in zip(values, self.values, strict=True)]
            assert found == [None, None], pass_.name
        running_again_changes_nothing(pass_, self.graph, changed)


def running_again_changes_nothing(pass_: Pass, graph: fx.Graph, once: str) -> None:
    again = pass_(graph)
    assert print_graph(graph) == once, pass_.name
    assert [action for action in again if action.kind not in REFUSALS] == [], pass_.name


def edge(graph: fx.Graph) -> tuple[list[Any], list[Any]]:
    """Names, order and types of placeholders; number, shapes and dtypes of results."""
    placeholders = [(node.name, *described(node)) for node in graph.nodes if node.op == "placeholder"]
    return placeholders, [described(node) for node in graph.output_node().args[0]]


def described(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape), node.meta["val"].dtype


def actions_name_a_node_and_its_source_line(actions: Sequence[Action], nodes: Mapping[str, str]) -> None:
    """Every action says which node and, unless that is an input, which line of the user's it stands for."""
    for action in actions:
        assert action.node in nodes
        assert action.kind in ("fresh", "removed", "moved", "fused", *REFUSALS) and action.reason
        assert action.code in ("", *errors.CODES)
        assert (action.code != "") or action.kind not in REFUSALS
        if nodes[action.node] != "placeholder":
            assert re.match(r"(test_laws|case_kernels)\.py:\d+ in \w+: .+", action.where), action


def new_nodes_have_types_and_source_lines(graph: fx.Graph, nodes: Mapping[str, str]) -> None:
    for node in graph.nodes:
        if node.name not in nodes:
            assert node.meta["val"] is not None and node.meta["stack_trace"], node


def test_every_pass_changes_one_of_the_graphs() -> None:
    """The functions above are no vacuous sample."""
    left = {pass_.name for pass_ in PASSES}
    for name in FUNCTIONS:
        graph = normalised(captured(name)).graph
        for pass_ in IN_ORDER:
            if changes(pass_, graph) or (pass_ not in FUSION and changes(pass_, normalised(captured(name)).graph)):
                left.discard(pass_.name)
    assert left == set()


def changes(pass_: Pass, graph: fx.Graph) -> bool:
    before = print_graph(graph)
    pass_(graph)
    return print_graph(graph) != before
