"""What surrounds a graph: modules and their state, hooks, modes, graph breaks, side effects, subclasses."""

from __future__ import annotations

import copy
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from tests.cases.harness import Record, compare, compiled
from tests.control_flow.training import backward, check_gradients
from tpu_lowering import errors

Tensor = torch.Tensor


def run_as_users_do(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """``torch.compile`` with graph breaks allowed."""
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", **how)


# Modules and their state ------------------------------------------------------------------------------
class Counting(nn.Module):
    """Writes buffers in its forward: in place, by assignment, and through BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(3, 3), nn.BatchNorm1d(3)]) for _ in range(2)])
        self.named = nn.ModuleDict({"gate": nn.Linear(3, 3)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in range(2)])
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.total = self.total + x.detach().sum(0)
        for (linear, norm), scale in zip(self.blocks, self.scales, strict=True):  # type: ignore[misc]
            x = norm(linear(x)) * scale
        return x * self.named["gate"](x).sigmoid()


def test_buffers_written_in_forward() -> None:
    torch.manual_seed(0)
    model = Counting()
    eager, own = copy.deepcopy(model), copy.deepcopy(model)
    run, calls = compiled(own, Record()), own.calls
    for _ in range(3):
        x = torch.randn(4, 3)
        wanted, result = eager(x), run(x)
        compare(result, wanted)
        wanted.square().sum().backward()
        result.square().sum().backward()
    assert own.calls is calls and calls.item() == 3
    compare(dict(own.named_buffers()), dict(eager.named_buffers()))
    compare([p.grad for p in own.parameters()], [p.grad for p in eager.parameters()])


def test_parameters_that_change_between_calls() -> None:
    """In place, by ``load_state_dict``, through ``.data`` and by reassignment: the next call sees it."""
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    run = run_as_users_do(model)
    compare(run(x), model(x))

    def in_place() -> None:
        with torch.no_grad():
            model.weight.mul_(2)

    def loaded() -> None:
        saved = io.BytesIO()
        torch.save(nn.Linear(3, 2).state_dict(), saved)
        saved.seek(0)
        model.load_state_dict(torch.load(saved, weights_only=True))

    def assigned() -> None:
        model.load_state_dict(nn.Linear(3, 2).state_dict(), assign=True)

    def replaced() -> None:
        model.weight = nn.Parameter(torch.randn(2, 3))

    def data() -> None:
        model.bias.data = torch.randn(2)

    for change in (in_place, loaded, assigned, replaced, data):
        before = run(x).detach().clone()
        change()
        compare(run(x), model(x))
        assert not torch.equal(before, run(x)), change.__name__


def test_copies_of_a_model_have_parameters_of_their_own() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    compare(run_as_users_do(model)(x), model(x))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.zero_()
    compare(torch.compile(other, backend="helion_tpu")(x), other(x))
    compare(torch.compile(model, backend="helion_tpu")(x), model(x))


@dataclasses.dataclass
class Both:
    value: Tensor
    also: Any


def test_keyword_arguments_and_structured_results() -> None:
    def function(x: Tensor, *, y: Tensor, scale: float = 2.0, **rest: Tensor) -> dict[str, Any]:
        return {
            "both": Both(x * scale, (y + rest["z"], None)), "list": [x.shape[0], 3, "name", True],
            "none": None, "same": y,
        }  # fmt: skip

    x, y, z = torch.randn(2), torch.randn(2), torch.randn(2)
    given, wanted = compiled(function, Record())(x, y=y, z=z), function(x, y=y, z=z)
    both, wanted_both = given.pop("both"), wanted.pop("both")
    compare(given, wanted)
    compare(dataclasses.astuple(both), dataclasses.astuple(wanted_both))
    assert isinstance(both, Both) and given["same"] is y


# Hooks ------------------------------------------------------------------------------------------------
def test_module_hooks() -> None:
    def with_hooks(model: nn.Module, seen: list[str]) -> nn.Module:
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        model[1].register_forward_hook(lambda module, args, result: result + 1)
        model[1].register_forward_hook(lambda module, args, result: seen.append("forward"))
        model[2].register_full_backward_hook(lambda module, into, out: (into[0] * 3,))
        return model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    seen: tuple[list[str], list[str]] = ([], [])
    eager, own = (with_hooks(copy.deepcopy(model), names) for names in seen)
    run = run_as_users_do(own)
    for _ in range(2):
        x = torch.randn(4, 3)
        wanted, result = eager(x), run(x)
        compare(result, wanted)
        backward(wanted)
        backward(result)
    compare([p.grad for p in own.parameters()], [p.grad for p in eager.parameters()])
    assert seen[0] == seen[1] == ["forward"] * 2


def test_tensor_hooks() -> None:
    """On an input, registered outside; on a value inside, registered in the graph; on a result."""

    def function(x: Tensor) -> Tensor:
        y = x * 2
        y.register_hook(lambda gradient: gradient + 1)
        return y.sin()

    def run(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        seen: list[Tensor] = []
        x = torch.arange(3.0, requires_grad=True)
        x.register_hook(lambda gradient: seen.append(gradient) or gradient * 10)
        result = call(x)
        result.register_hook(lambda gradient: gradient * 5)
        result.sum().backward()
        return result, x.grad, seen

    compare(run(run_as_users_do(function)), run(function))


# Modes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
def test_gradient_modes_around_a_compiled_model(mode: Callable[[], Any]) -> None:
    """The same compiled model, in and out of a mode; what it returns is what eager returns."""
    model = nn.Linear(3, 2)
    run, x = run_as_users_do(model), torch.randn(4, 3)
    for scope in (mode, torch.enable_grad, mode):
        with scope():
            result, wanted = run(x), model(x)
        compare(result, wanted)
        assert (result.requires_grad, result.is_inference()) == (wanted.requires_grad, wanted.is_inference())


def test_inference_tensors_as_arguments() -> None:
    with torch.inference_mode():
        x = torch.randn(3)
        y = torch.zeros(3)

    def function(x: Tensor, y: Tensor) -> Tensor:
        y.add_(x)
        return y[1:] * 2

    with torch.inference_mode():
        compare(run_as_users_do(function)(x, y), x[1:] * 2)
        compare(y, x)


def test_gradient_modes_inside() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            constant = x * 2
        with torch.inference_mode():
            other = x * 3
        with torch.enable_grad():
            y = x.sin() * constant
        return y, constant, other + 0, x.detach() * 4, y.detach()

    x = torch.randn(3, requires_grad=True)
    result, wanted = run_as_users_do(function)(x), function(x)
    compare(result, wanted)
    assert [r.requires_grad for r in result] == [r.requires_grad for r in wanted]
    compare(torch.autograd.grad(result[0].sum(), x), torch.autograd.grad(wanted[0].sum(), x))


# Graph breaks and side effects ------------------------------------------------------------------------
def test_graph_breaks_and_side_effects() -> None:
    log: list[Any] = []

    @torch.compiler.disable
    def eager_region(x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)

    def function(x: Tensor, state: dict[str, int]) -> Tensor:
        state["calls"] += 1
        y = x + 1
        y.add_(1)
        torch._dynamo.graph_break()
        log.append(y.sum().item())
        z = eager_region(y) + y
        if z.sum() > 0:
            state["positive"] += 1
            return z * 2
        return z * 3

    state, other = {"calls": 0, "positive": 0}, {"calls": 0, "positive": 0}
    run = run_as_users_do(function)
    for sign in (1, -1, 1):
        x = sign * torch.rand(3) - 3 * (sign < 0)
        result, mine, log[:] = run(x, state), log[-1], []
        wanted = function(x, other)
        compare(result, wanted)
        assert mine == pytest.approx(log[-1])
    assert state == other == {"calls": 3, "positive": 2}
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        compiled(function, Record())(torch.ones(3), state)


def test_stance() -> None:
    """``force_eager`` runs nothing of ours; afterwards the compiled code is used again."""
    record = Record()
    run = compiled(lambda x: x * 2, record)
    with torch.compiler.set_stance("force_eager"):
        assert run(torch.ones(2)).tolist() == [2, 2] and not record.graphs
    assert run(torch.ones(2)).tolist() == [2, 2] and record.graphs
    with torch.compiler.set_stance("eager_on_recompile"):
        assert run(torch.ones(3)).tolist() == [2, 2, 2] and len(record.graphs) == 1


def test_modes_of_inductor_are_ignored_with_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run_as_users_do(lambda x: x + 1, mode="reduce-overhead")(torch.ones(2))
    assert result.tolist() == [2, 2]
    assert sum("mode='reduce-overhead' is ignored" in str(one.message) for one in caught) == 1


# Function transforms ----------------------------------------------------------------------------------
WEIGHT = torch.arange(1.0, 7.0).view(3, 2) / 6


def loss(weight: Tensor, x: Tensor) -> Tensor:
    return (x @ weight).sin().square().sum()


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


AFFINE = Affine()

TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "vmap": lambda w, x: torch.func.vmap(lambda row: (row @ w).exp() * row.sum())(x),
    "vmap of the second dimension": lambda w, x: torch.func.vmap(lambda c: c * 2 + 1, in_dims=1, out_dims=1)(x),
    "grad": lambda w, x: torch.func.grad(loss)(w, x),
    "grad_and_value": lambda w, x: torch.func.grad_and_value(loss, argnums=(0, 1))(w, x),
    "gradients of each row": lambda w, x: torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x),
    "jvp": lambda w, x: torch.func.jvp(loss, (w, x), (torch.ones_like(w), x * 2)),
    "vjp": lambda w, x: torch.func.vjp(lambda x: (x @ w).sin(), x)[1](torch.ones(4, 2)),
    "jacrev": lambda w, x: torch.func.jacrev(lambda x: (x @ w).sin())(x[0]),
    "hessian": lambda w, x: torch.func.hessian(lambda x: (x @ w).pow(3).sum())(x[0]),
    "functional_call": lambda w, x: torch.func.functional_call(AFFINE, {"weight": w * 2}, (x,)),
}


@pytest.mark.parametrize("function", TRANSFORMS.values(), ids=TRANSFORMS)
def test_function_transforms(function: Callable[[Tensor, Tensor], Any]) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    compare(compiled(function, Record())(WEIGHT.clone(), x), function(WEIGHT.clone(), x))


# Subclasses -------------------------------------------------------------------------------------------
def test_wrapper_subclass() -> None:
    """AOTAutograd takes it apart; the results are put together again, and so are gradients."""

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y.sum() + 1, x.t()

    def made() -> TwoTensor:
        return TwoTensor(torch.arange(6.0).view(2, 3), torch.ones(2, 3)).requires_grad_()

    record, given, own = Record(), made(), made()
    y = torch.randn(3)
    wanted, result = function(given, y), compiled(function, record)(own, y)
    assert all(isinstance(one, TwoTensor) for one in result)
    for mine, theirs in zip(result, wanted, strict=True):
        compare((mine.a, mine.b), (theirs.a, theirs.b))
    (wanted[0] * wanted[0]).sum().backward()
    (result[0] * result[0]).sum().backward()
    assert given.grad is not None and own.grad is not None
    compare((own.grad.a, own.grad.b), (given.grad.a, given.grad.b))
    assert set(record.graphs) == {"forward", "backward"}


def test_mutated_wrapper_subclass() -> None:
    def function(x: Tensor) -> Tensor:
        x.mul_(2)
        return x + 1

    own = TwoTensor(torch.ones(2), torch.zeros(2))
    result = compiled(function, Record())(own)
    assert (own.a.tolist(), own.b.tolist()) == ([2, 2], [0, 0])
    assert (result.a.tolist(), result.b.tolist()) == ([3, 3], [1, 1])


# Gradients --------------------------------------------------------------------------------------------
def test_only_some_arguments_need_a_gradient() -> None:
    def function(x: Tensor, y: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        return x * y * n, y.exp(), n + 1, x.argmax(), x.sum(), x

    given, own = torch.randn(3), torch.randn(3, requires_grad=True)
    n = torch.arange(3)
    result, wanted = compiled(function, Record())(given, own, n), function(given, own, n)
    compare(result, wanted)
    assert [r.requires_grad for r in result] == [r.requires_grad for r in wanted]
    compare(torch.autograd.grad(result[0].sum(), own), torch.autograd.grad(wanted[0].sum(), own))


@pytest.mark.parametrize("function", [lambda x: (x**3).sum(), lambda x: x.exp().sum(), lambda x: x.view(3, 1).sin()])
def test_gradients_of_gradients_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    """Never zeros: neither by ``grad``, nor by ``backward``, nor where torch takes a missing gradient for zero."""
    x = torch.randn(3, requires_grad=True)
    ours = compiled(function, Record())
    told: list[str] = []
    for ask in (
        lambda: torch.autograd.grad(ours(x).sum(), x, create_graph=True),
        lambda: ours(x).sum().backward(create_graph=True),
        lambda: torch.autograd.functional.hvp(lambda x: ours(x).sum(), x.detach(), torch.ones(3)),
    ):
        with pytest.raises(errors.TpuLoweringError) as caught:
            ask()
        told.append(str(caught.value))
    assert told == [told[0]] * 3
    assert told[0] == (
        "[TL306] gradient of a gradient: the backward of a compiled function\n"
        "  why  expected create_graph=False, got a backward whose own gradient may be asked for: a compiled backward "
        "records none\n"
        "  fix  call the function in eager torch where gradients of gradients are needed (hvp, gradient penalties), or "
        "use torch.func.grad inside of the compiled function"
    )
    compare(torch.autograd.grad(ours(x).sum(), x), torch.autograd.grad(function(x).sum(), x))


class Halved(torch.autograd.Function):
    """Its backward is not the derivative of its forward, so that a lost one shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.factor = factor
        ctx.mark_non_differentiable(flags := x > 0)
        return x.sin() * factor, flags

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * x.cos() * ctx.factor / 2, None


def test_autograd_function() -> None:
    check_gradients(lambda x: Halved.apply(x * 2, 3.0), torch.randn(4))


@pytest.fixture
def compiled_autograd() -> Iterator[None]:
    torch._dynamo.config.compiled_autograd = True
    yield
    torch._dynamo.config.compiled_autograd = False
    torch._dynamo.compiled_autograd.reset()


def test_compiled_autograd(compiled_autograd: None) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    torch._dynamo.reset()

    @torch.compile(backend="helion_tpu")
    def step() -> Tensor:
        value = model(x).square().sum()
        value.backward()
        return value

    result = step()
    grads = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    wanted = model(x).square().sum()
    wanted.backward()
    compare((result, grads), (wanted, [p.grad for p in model.parameters()]))
