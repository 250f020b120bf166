"""``passes.apply`` in other backends: results, mutated inputs and aliases are eager's, allocations and copies are gone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from tests.bridge.bridge_backend import aot, made_in
from tests.bridge.bridge_kernels import (
    accumulate,
    count_up,
    exp_into,
    exp_over,
    first_rows,
    iota_into,
    spread,
    two_into,
    update,
)
from tpu_lowering import passes
from tpu_lowering.bridge.functional_kernels import make_kernels_functional


def plain(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    exp_into(x, out)
    return out + 1


def every_allocation(x: Tensor) -> tuple[Tensor, ...]:
    outs = [
        torch.empty(x.shape), x.new_empty(x.shape), torch.empty_strided(x.shape, x.stride()),
        x.new_empty_strided(x.shape, x.stride()), torch.empty_permuted(x.shape, (1, 0)),
    ]  # fmt: skip
    for number, out in enumerate(outs):
        exp_into(x + number, out)
    return tuple(outs)


def merged(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.new_empty(x.shape), x.new_empty(x.shape)
    exp_into(x, a)
    exp_into(a * 0.1, b)
    return a, b


def halves(x: Tensor) -> Tensor:
    out = x.new_empty(2 * x.shape[0], x.shape[1])
    exp_into(x, out[: x.shape[0]])
    exp_into(x * 2, out[x.shape[0] :])
    return out


def views_of_one(x: Tensor) -> Tensor:
    both = x.new_empty(2, *x.shape)
    two_into(x, both[0], both[1])
    return both.sum(0)


def transposed(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[1], x.shape[0]).t()
    exp_into(x, out)
    return out


def chained(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    exp_into(x, out)
    accumulate(x, out)
    return out


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x)
    exp_into(x, out)
    first = out.clone()
    exp_into(x * 2, out)
    return first, out


def twice_over(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first value is still needed when the buffer is overwritten: in place, that takes a copy."""
    out = torch.empty_like(x)
    exp_into(x, out)
    first = out.clone()
    exp_over(x.t().t(), out)
    return first, out


def partly(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    first_rows(x, out)
    return out[:2] * 2


def mixed(x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x)
    total = update(x, cache, out)
    return out + 1, total


def part_of_input(x: Tensor, cache: Tensor) -> Tensor:
    out = x.new_empty(2, x.shape[1])
    update(x[:2], cache[1:3], out)
    return out


def lists(x: Tensor) -> tuple[Tensor, ...]:
    a, b, extra = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    spread([a, b], x)
    spread([extra], x, torch.empty_like(x))
    return a, b, extra


def list_with_input(x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
    out, extra = torch.empty_like(x), torch.empty_like(x)
    spread([out, cache], x, extra)
    return out, extra


def filled(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    accumulate(x, out)
    return out


def filled_in_part(x: Tensor) -> Tensor:
    out = torch.full_like(x, 7)
    first_rows(x, out)
    return out


def overwritten_fill(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    exp_over(x, out)
    return out


def overwritten_value(x: Tensor) -> tuple[Tensor, Tensor]:
    out = x.sin()
    first = out.clone()
    exp_over(x, out)
    return first, out


def overwritten_input(x: Tensor, cache: Tensor) -> Tensor:
    exp_over(x, cache)
    return cache + 1


def one_buffer_twice(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    two_into(x, out, out)
    return out


def in_and_out(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    exp_into(x, out)
    accumulate(out, out)
    return out


def aliased_input(x: Tensor, cache: Tensor) -> Tensor:
    row = cache[0]
    out = torch.empty_like(x)
    update(x, cache, out)
    return out + row


def no_operands(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    iota_into(out)
    return out + x


def dead(x: Tensor) -> Tensor:
    exp_into(x, torch.empty_like(x))
    return x * 2


# The model, how many buffers become fresh, and how many allocations and fills stay.
CASES: dict[Callable[..., Any], tuple[int, int]] = {
    plain: (1, 0), every_allocation: (5, 0), merged: (2, 0), halves: (1, 0), views_of_one: (1, 0), transposed: (1, 0),
    chained: (1, 0), twice: (1, 0), partly: (1, 0), mixed: (1, 0), part_of_input: (1, 0), lists: (4, 0),
    list_with_input: (1, 1), filled: (0, 1), filled_in_part: (0, 1), overwritten_fill: (1, 0),
    overwritten_value: (1, 0), overwritten_input: (0, 0), one_buffer_twice: (1, 0), in_and_out: (1, 0),
    aliased_input: (1, 0), no_operands: (0, 1), twice_over: (2, 0),
}  # fmt: skip


def arguments_of(model: Callable[..., Any]) -> list[Tensor]:
    x = torch.linspace(-1, 1, 32).view(4, 8)
    return [x, torch.arange(32.0).view(4, 8)][: model.__code__.co_argcount]


def make_call(run: Callable[..., Any], model: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
    arguments = copy.deepcopy(arguments_of(model))
    return run(*arguments), arguments


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("model", CASES, ids=lambda model: model.__name__)
def test_after_aot_autograd(model: Callable[..., Any]) -> None:
    actions: list[Any] = []
    after: list[torch.fx.GraphModule] = []
    backend = aot(lambda module: actions.extend(make_kernels_functional(module.graph)), after=after)
    found, mutated = make_call(torch.compile(model, backend=backend, fullgraph=True), model)
    wanted, expected = make_call(model, model)
    torch.testing.assert_close(found, wanted, check_stride=True)
    torch.testing.assert_close(mutated, expected)
    fresh, left = CASES[model]
    assert [action.kind for action in actions] == ["fresh"] * fresh
    assert made_in(after[0].graph) == left
    assert "kernel_call" not in after[0].code
    again = [passes.apply(module) for module in after]
    assert [module.code for module in again] == [module.code for module in after]


@pytest.mark.parametrize("model", CASES, ids=lambda model: model.__name__)
def test_where_mutations_are_in_the_graph(model: Callable[..., Any]) -> None:
    """The pass after another one has undone the functional form: operators write to what they are given."""
    from torch._inductor.fx_passes.post_grad import decompose_auto_functionalized
    from torch._inductor.fx_passes.reinplace import reinplace_inplaceable_ops

    def undo(module: torch.fx.GraphModule) -> None:
        from torch._inductor.fx_utils import FakeTensorUpdater

        reinplace_inplaceable_ops(FakeTensorUpdater(module), module.graph)
        decompose_auto_functionalized(module.graph)

    after: list[torch.fx.GraphModule] = []
    found, mutated = make_call(
        torch.compile(model, backend=aot(undo, passes.apply, after=after), fullgraph=True), model
    )
    wanted, expected = make_call(model, model)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mutated, expected)
    assert "auto_functionalized" not in after[0].code
    if model in (plain, merged, chained, twice, partly, mixed, lists, in_and_out, aliased_input):
        assert made_in(after[0].graph) == 0


def generated(model: Callable[..., Any], rewrite: Any, **options: Any) -> tuple[Any, list[Tensor], str]:
    """Results, arguments and the body of Inductor's generated code."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(post_grad_custom_pre_pass=rewrite, fx_graph_cache=False):
        run = torch.compile(model, backend="inductor", fullgraph=True, **options)
        arguments = copy.deepcopy(arguments_of(model))
        result, (code, *_) = run_and_get_code(run, *arguments)
    return result, arguments, code[code.index("def call(") : code.index("def get_args")]


def counted(code: str) -> tuple[int, int]:
    """Allocations, and kernels of Inductor's own (for the models here: fills, copies and what the model computes)."""
    return len(re.findall(r"= empty_strided_cpu\(", code)), len(re.findall(r"\bcpp_fused_\w+\(", code))


# Allocations and kernels in Inductor's code: as it is, and with the pass. Allocations that stay hold what Inductor's
# kernels compute; kernels that go were fills and copies.
INDUCTOR: dict[Callable[..., Any], tuple[tuple[int, int], tuple[int, int]]] = {
    plain: ((2, 1), (0, 1)), every_allocation: ((6, 1), (5, 1)), merged: ((3, 1), (1, 1)), halves: ((2, 1), (1, 1)),
    views_of_one: ((2, 1), (1, 1)), transposed: ((1, 0), (0, 0)), chained: ((1, 0), (0, 0)), twice: ((3, 1), (2, 1)),
    twice_over: ((2, 1), (0, 0)), partly: ((2, 1), (1, 1)), mixed: ((2, 1), (0, 1)), part_of_input: ((1, 0), (0, 0)),
    lists: ((4, 0), (0, 0)), list_with_input: ((2, 0), (1, 0)), filled: ((1, 1), (1, 1)),
    filled_in_part: ((1, 1), (1, 1)), overwritten_fill: ((1, 1), (0, 0)), overwritten_value: ((2, 1), (1, 1)),
    overwritten_input: ((1, 1), (1, 1)), one_buffer_twice: ((1, 0), (0, 0)), in_and_out: ((1, 0), (0, 0)),
    aliased_input: ((2, 1), (0, 1)), no_operands: ((2, 1), (2, 1)), dead: ((1, 1), (1, 1)),
}  # fmt: skip
if torch.__version__ >= "2.14":  # from then on Inductor allocates one buffer less
    INDUCTOR[every_allocation] = ((6, 1), (4, 1))


@pytest.mark.sweep
@pytest.mark.parametrize("model", [*CASES, dead], ids=lambda model: model.__name__)
def test_in_inductor(model: Callable[..., Any]) -> None:
    wanted, expected = make_call(model, model)
    before = generated(model, None)
    after = generated(model, passes.apply)
    for result, mutated, _ in (before, after):
        torch.testing.assert_close(result, wanted, check_stride=True)
        torch.testing.assert_close(mutated, expected)
    assert (counted(before[2]), counted(after[2])) == INDUCTOR[model]


def test_a_buffer_that_is_read_while_it_is_written() -> None:
    """It stays one buffer, as Inductor has it; a fresh one for the writes would leave the reads undefined."""

    def model(x: Tensor) -> Tensor:
        out = torch.empty(8, 4)
        count_up(out, out)
        return out + x

    x = torch.zeros(8, 4)
    for rewrite in (None, passes.apply):
        torch._dynamo.reset()
        with torch._inductor.config.patch(post_grad_custom_pre_pass=rewrite, fx_graph_cache=False):
            torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_copies_in_aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as it is, the functional form copies every buffer before an operator writes to it."""
    from torch._higher_order_ops import auto_functionalize

    clones: list[Tensor] = []
    clone = auto_functionalize.clone_preserve_strides
    monkeypatch.setattr(auto_functionalize, "clone_preserve_strides", lambda x: clones.append(x) or clone(x))

    def copies(*rewrites: Any) -> int:
        torch._dynamo.reset()
        run = torch.compile(mixed, backend=aot(*rewrites), fullgraph=True)
        make_call(run, mixed)
        clones.clear()
        make_call(run, mixed)
        return len(clones)

    assert copies() == 2 and copies(passes.apply) == 1  # the cache's is left: it is an input


@pytest.mark.sweep
@pytest.mark.parametrize("model", [plain, every_allocation, merged, views_of_one, chained, lists, partly])
def test_sizes_that_are_symbols(model: Callable[..., Any]) -> None:
    after: list[torch.fx.GraphModule] = []
    # Inductor by itself computes views of one base from a storage offset that is wrong when sizes are symbols.
    backends = [aot(passes.apply, after=after), *(["inductor"] if model is not views_of_one else [])]
    for backend in backends:
        torch._dynamo.reset()
        with torch._inductor.config.patch(post_grad_custom_pre_pass=passes.apply, fx_graph_cache=False):
            run = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
            for rows in (4, 6, 9):
                x = torch.randn(rows, 8)
                torch.testing.assert_close(run(x), model(x))
    assert len(after) == 1
    # Strides that are not row-major, and a view's offset, which AOTAutograd asks the allocation itself for.
    assert made_in(after[0].graph) == (1 if model in (every_allocation, views_of_one) else 0)


def test_gradients() -> None:
    """Forward and backward graphs, through Inductor and ``aot_autograd``."""

    def model(x: Tensor, w: Tensor) -> Tensor:
        out, other = torch.empty_like(x), torch.empty_like(x)
        exp_into(x, out)
        exp_into(out * 0.1, other)
        return ((out + other) * w).sin().sum()

    x, results = torch.randn(4, 8), []
    for backend in ("eager", aot(passes.apply), "inductor"):
        torch._dynamo.reset()
        w = torch.linspace(0, 1, 32).view(4, 8).requires_grad_()
        with torch._inductor.config.patch(post_grad_custom_pre_pass=passes.apply, fx_graph_cache=False):
            torch.compile(model, backend=backend, fullgraph=True)(x, w).backward()
        results.append(w.grad)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_fresh_memory_is_made_anew_for_every_call() -> None:
    run = torch.compile(plain_result, backend=aot(passes.apply), fullgraph=True)
    x = torch.randn(4, 8)
    first, second = run(x), run(x)
    first.fill_(9)
    torch.testing.assert_close(second, x.exp())


def plain_result(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    exp_into(x, out)
    return out


def test_memory_that_eager_fills_is_not_undefined() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        after: list[torch.fx.GraphModule] = []
        x = torch.randn(4, 8)
        run = torch.compile(whole_buffer, backend=aot(passes.apply, after=after), fullgraph=True)
        torch.testing.assert_close(run(x), whole_buffer(x), equal_nan=True)
        assert made_in(after[0].graph) == 1
    finally:
        torch.use_deterministic_algorithms(False)


def whole_buffer(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    first_rows(x, out)
    return out


def test_graphs_without_kernels_are_left_alone() -> None:
    module = torch.fx.symbolic_trace(lambda x: torch.empty_like(x).copy_(x))
    before = module.code
    assert passes.apply(module) is module and module.code == before
    assert passes.apply(module.graph) is module


def test_schemas() -> None:
    from tpu_lowering.bridge.fresh_operators import FreshForm, schema_of
    from tpu_lowering.ir.functionalized_calls import BaseView

    whole = BaseView(0, "whole")
    form = FreshForm(torch.ops.bridge.first_rows.default, (("out", whole),), 1)
    assert schema_of(form) == (
        '(Tensor x, SymInt rows=2, str how="a, (b", *, SymInt[] size_0, SymInt[]? stride_0, ScalarType dtype_0, '
        "Device device_0) -> Tensor"
    )
    form = FreshForm(torch.ops.bridge.update.default, (("out", BaseView(0, "slice")),), 1)
    assert schema_of(form) == (
        "(Tensor x, Tensor(a1!) cache, *, SymInt[] size_0, SymInt[]? stride_0, ScalarType dtype_0, Device device_0, "
        "SymInt[] view_0) -> (Tensor, Tensor)"
    )
