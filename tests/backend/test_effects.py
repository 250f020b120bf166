"""What a graph does beside giving results: memory exchanged, freed and allocated again, values asserted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.normalise import effects

BIG = 8192  # elements of float32: memory that a program reads in place


def two() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(4.0), torch.arange(4.0) + 10


def layer() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(2, 2, bias=False), torch.eye(2)


def data_is_argument(x: Any, t: torch.Tensor) -> torch.Tensor:
    x.data = t
    return x + 1


def data_is_computed(x: Any, t: torch.Tensor) -> torch.Tensor:
    x.data = t * 2
    return x.sum()


def data_of_another_shape(x: Any, t: torch.Tensor) -> torch.Tensor:
    x.data = torch.cat([t, t]).reshape(2, 4).t()
    return x.detach() + 1


def data_is_a_result(x: Any, t: torch.Tensor) -> torch.Tensor:
    x.data = t * 2
    return x.data


def data_set_twice(x: Any, t: torch.Tensor) -> torch.Tensor:
    x.data = t + 1
    y = x * 2
    x.data = t - 1
    return y + x


def data_exchanged(x: Any, t: Any) -> torch.Tensor:
    a, b = x.data, t.data
    x.data, t.data = b, a
    return x + 1


def set_to_computed(x: Any, t: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x.set_(t[1:] * 3)
    return x.detach() + 1


SETS = [
    data_is_argument,
    data_is_computed,
    data_of_another_shape,
    data_is_a_result,
    data_set_twice,
    data_exchanged,
    set_to_computed,
]


def state(value: Any) -> Any:
    """What can be seen of an argument."""
    if isinstance(value, nn.Module):
        return {name: state(parameter) for name, parameter in value.named_parameters()}
    return value.detach().clone(), value.shape, value.stride(), value.untyped_storage().size(), value.requires_grad


def both(function: Callable[..., Any], make: Callable[[], tuple[Any, ...]], **options: Any) -> None:
    """Asserts that results and arguments are eager's, and share memory as eager's do."""
    seen: list[Any] = []
    for run in (function, torch.compile(function, backend="helion_tpu", **options)):
        arguments = make()
        results = run(*arguments)
        tensors = [v for v in (*arguments, results) if isinstance(v, torch.Tensor)]
        pointers = [t.untyped_storage().data_ptr() for t in tensors]
        seen.append((list(map(state, (*arguments, results))), [[p == q for q in pointers] for p in pointers]))
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("function", SETS, ids=lambda f: f.__name__)
def test_exchanged_memory_is_exchanged(function: Callable[..., Any], gradient: bool, dynamic: bool) -> None:
    def make() -> tuple[torch.Tensor, torch.Tensor]:
        x, t = two()
        return x.requires_grad_(gradient), t

    both(function, make, dynamic=dynamic)


@pytest.mark.parametrize("grad", [False, True])
def test_weights_are_exchanged(grad: bool) -> None:
    def replace(module: Any, x: torch.Tensor) -> torch.Tensor:
        module.weight.data = x + 1
        return module(x).detach()

    def shift(module: Any, x: torch.Tensor) -> torch.Tensor:
        module.weight.data = module.weight.data + 1
        return module(x).detach()

    with torch.set_grad_enabled(grad):
        both(replace, layer)
        both(shift, layer)


def free_argument(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    y = x[:3] + t[:3]
    x.untyped_storage().resize_(0)
    return y


def free_result(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = x * 2
    z = y[:3] + t[:3]
    y.untyped_storage().resize_(0)
    return y, z


def fill_again(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    x.untyped_storage().resize_(BIG * 4)
    x.copy_(t)
    return x * 2


@pytest.mark.parametrize("function", [free_argument, free_result, fill_again])
def test_memory_is_freed_and_allocated(function: Callable[..., Any]) -> None:
    seen: list[Any] = []
    for run in (function, torch.compile(function, backend="helion_tpu", fullgraph=True)):
        x, t = torch.arange(float(BIG)), torch.ones(BIG)
        if function is fill_again:
            x.untyped_storage().resize_(0)
        results = run(x, t)
        tensors = (x, t, *(results if isinstance(results, tuple) else (results,)))
        sizes = [value.untyped_storage().size() for value in tensors]
        seen.append((sizes, [value.sum().item() for value, size in zip(tensors, sizes, strict=True) if size]))
    assert seen[1] == seen[0]


@pytest.mark.parametrize("gradient", [False, True])
def test_assertions_hold_or_raise(gradient: bool) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        torch._assert_async(x.sum() > 0, "expected a positive sum")
        return (x * 2).sum()

    compiled = torch.compile(function, backend="helion_tpu", fullgraph=True)
    assert compiled(torch.ones(4).requires_grad_(gradient)).item() == 8
    with pytest.raises(RuntimeError, match="expected a positive sum"):
        compiled((-torch.ones(4)).requires_grad_(gradient))


def test_exchanged_and_written_is_refused() -> None:
    def function(x: Any, t: torch.Tensor) -> torch.Tensor:
        x.data = t
        x.add_(1)
        return x * 2

    with pytest.raises(compat.BackendCompilerFailed) as caught:
        torch.compile(function, backend="helion_tpu")(*two())
    refusal = getattr(caught.value, "inner_exception")  # noqa: B009
    assert str(refusal) == (
        "[TL308] memory is changed in a way that no program can: an argument whose memory is exchanged "
        "(x.data = ..., x.set_(...), a storage's resize_)\n"
        "  why  expected that to be all that is done to it, got another write to it in the same graph\n"
        "  fix  compute the new tensor before it is set (x.data = t + 1), or do one of the two in eager torch, outside of "
        "the compiled function"
    )


def test_dead_code_has_no_effects() -> None:
    """What writes by its schema or asserts is not dead, used or not; and no program is made of what writes."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    aten = torch.ops.aten
    kept = [
        graph.call_function(aten.add_.Tensor, (x, 1)),
        graph.call_function(aten.set_.source_Tensor, (x, x)),
        graph.call_function(aten._assert_async.msg, (x, "")),
    ]
    dead = [graph.call_function(aten.bernoulli.p, (x, 0.5)), graph.call_function(aten.add.Tensor, (x, 1))]
    graph.output(x)
    assert graphs.eliminate_dead_code(graph) == dead[::-1]
    assert [node for node in graph.nodes if node.op == "call_function"] == kept
    effects.drop_checks(graph)
    with pytest.raises(RuntimeError) as caught:
        effects.refuse_writes(graph)
    assert str(caught.value) == (
        "[TL308] memory is changed in a way that no program can: aten.add_.Tensor\n"
        "  why  expected operators that give new values, as AOTAutograd writes them, got one that writes to its "
        "arguments\n"
        "  fix  do it in eager torch, outside of the compiled function"
    )
