"""Surroundings, S1 to S8: the caller's tensors, gradients, scalars, seeds, dtypes, operators of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import helion.language as hl
import jax
import jax.numpy as jnp
import pytest
import torch

from tests.cases.case_kernels import pallas_kernel
from tests.cases.harness import Record, check, compare, compiled, refusal, sharing
from tests.cases.harness_views import (
    ACCUMULATES,
    EXPS,
    IDS,
    Kernel,
    accumulate_any,
    exp_any_into,
    helion_exp_any_into,
    made,
    written,
)
from tpu_lowering import TpuLoweringError, kernel_op
from tpu_lowering.backend import helion_tpu

CHECKING = {"verify": True, "poison": True}

with_exps = pytest.mark.parametrize("kernel, eager", EXPS, ids=IDS)
with_accumulates = pytest.mark.parametrize("kernel, eager", ACCUMULATES, ids=IDS)

# S1: the caller's tensors -----------------------------------------------------------------------------
MEMORIES: dict[str, Callable[[], tuple[torch.Tensor]]] = {
    "plain": made(2, 3),
    "transposed": lambda: (torch.randn(3, 2).t(),),
    "with gaps": lambda: (torch.randn(2, 6)[:, ::2],),
    "part of a larger one": lambda: (torch.randn(4, 3)[1:3],),
}


@with_accumulates
@pytest.mark.parametrize("arguments", MEMORIES.values(), ids=MEMORIES)
def test_s1_mutated_input(kernel: Kernel, eager: Kernel, arguments: Callable[[], tuple[torch.Tensor]]) -> None:
    """Returned, returned as views, and used: the caller's memory is updated, and the results are parts of it."""

    def using(op: Kernel) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            op(torch.ones_like(x), x)
            return x, x.t(), x[0], x * 2

        return function

    check(using(kernel), arguments, model=using(eager), aliased=(written(kernel),), kept=("TL501",))


def test_s1_mutated_input_that_is_not_returned() -> None:
    def function(x: torch.Tensor) -> None:
        accumulate_any(torch.ones_like(x), x)

    check(function, made(2, 3), aliased=("accumulate_any.out",))


def test_s1_caller_passes_two_views_of_one_memory() -> None:
    """Writing through the first shows in the second, on the elements that they share."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        accumulate_any(torch.ones_like(x), x)
        return y * 2

    def overlapping() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 3)
        return x[:2], x[1:3]

    def whole_and_flat() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 3)
        return x, x.view(-1)

    check(function, overlapping)
    check(function, whole_and_flat)


# S2: allocations and views among the results ----------------------------------------------------------
@with_exps
def test_s2_written_allocation_and_its_views_are_results(kernel: Kernel, eager: Kernel) -> None:
    """They share one memory, as in eager; the program computes it once."""

    def using(op: Kernel) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = torch.empty_like(x)
            op(x, out)
            return out, out.view(-1), out[0], x, out.view(torch.int32), out.t(), out

        return function

    record = check(using(kernel), made(2, 3), model=using(eager), fresh=(written(kernel),), allocations=0)
    assert record.only.program is not None and len(record.only.program.output_nodes()) == 1


def test_s2_unwritten_allocation_is_a_result() -> None:
    """Its contents are undefined, its memory is its own."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unwritten, out = torch.empty_like(x), torch.empty_like(x)
        exp_any_into(x, out)
        return unwritten, out

    record = check(function, made(2, 3), defined=lambda results: results[1], allocations=1, kept=("TL503",))
    assert record.results[0].isnan().all()
    assert sharing(record.results, ()) == [0, 1]


def test_s2_results_without_views_have_memory_of_their_own() -> None:
    """An input that is copied or merely returned, and one value under two names."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x + 1
        return x, x.clone(), x.view(-1), y, y.clone(), y * 1

    check(function, made(2, 3))


# S3: gradients ----------------------------------------------------------------------------------------
def _save_result(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[0] if isinstance(output, tuple) else output)


def _exp_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    (result,) = ctx.saved_tensors
    return gradient * result, None


@kernel_op("cases_surroundings::exp_into", mutates_args=("out",), backward=_exp_backward, setup_context=_save_result)
def differentiable_exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return jnp.exp(x)


def _save_first_input(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])


def _sin_backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
    (x,) = ctx.saved_tensors
    return gradient * torch.cos(x)


@kernel_op("cases_surroundings::sin", backward=_sin_backward, setup_context=_save_first_input)
def differentiable_sin(x: torch.Tensor) -> torch.Tensor:
    return jnp.sin(x)


class ExpFunction(torch.autograd.Function):
    """A kernel in the forward and in the backward of a function of the user's."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_any_into(x, out)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (result,) = ctx.saved_tensors
        again = torch.empty_like(result)
        exp_any_into(torch.log(result), again)
        return gradient * again


class HelionExpFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        helion_exp_any_into(x, out)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (result,) = ctx.saved_tensors
        return gradient * result


def mutable_with_backward(x: torch.Tensor) -> torch.Tensor:
    h = x * 2
    out = torch.empty_like(h)
    differentiable_exp_into(h, out)
    return out * x


def functional_with_backward(x: torch.Tensor) -> torch.Tensor:
    return differentiable_sin(x * 3) * x


def saved_before_an_overwrite(x: torch.Tensor) -> torch.Tensor:
    """``sin`` saves ``h``, which ``mul_`` overwrites: the gradient is that of the old value."""
    h = x * 2
    y = h.clone().sin()
    z = torch.empty_like(h)
    differentiable_exp_into(h, z)
    h.mul_(3)
    return y + z + h


GRADIENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mutable operator": (mutable_with_backward,) * 2,
    "functional operator": (functional_with_backward,) * 2,
    "saved before an overwrite": (saved_before_an_overwrite,) * 2,
    "autograd function": (lambda x: ExpFunction.apply(x * 2), lambda x: (x * 2).exp()),
    "autograd function with Helion": (lambda x: HelionExpFunction.apply(x * 2), lambda x: (x * 2).exp()),
}


@pytest.mark.parametrize("function, model", GRADIENTS.values(), ids=GRADIENTS)
def test_s3_gradients(function: Callable[..., Any], model: Callable[..., Any]) -> None:
    weight = torch.arange(1.0, 13.0).view(3, 4)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    record, given, own = Record(), x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = model(given)
    result = compiled(function, record)(own)
    (wanted * weight).sum().backward()
    (result * weight).sum().backward()
    compare((result, own.grad), (wanted, given.grad))
    assert set(record.graphs) == {"forward", "backward"}
    assert all(graph.at("lower").allocations == 0 for graph in record.graphs.values())


@with_exps
def test_s3_kernel_without_backward_raises(kernel: Kernel, eager: Kernel) -> None:
    """Where no gradient is asked for, it runs."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernel(x, out)
        return out

    x = torch.randn(3)
    assert refusal(function, lambda: (x.clone().requires_grad_(),)).code == "TL205"
    with torch.no_grad():
        result = compiled(function, Record())(x.clone().requires_grad_())
    torch.testing.assert_close(result, x.exp())
    detached = compiled(lambda x: function(x.detach()), Record())(x.clone().requires_grad_())
    torch.testing.assert_close(detached, x.exp())


def test_s3_kernel_without_backward_raises_in_eager_and_in_other_backends() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        exp_any_into(x, out)
        return out

    with pytest.raises(TpuLoweringError, match="TL205"):
        function(torch.randn(3, requires_grad=True))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="TL205"):
        torch.compile(function, backend="aot_eager")(torch.randn(3, requires_grad=True))


# S4: memory that eager fills --------------------------------------------------------------------------
@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("checking", [True, False], ids=["poisoned", "plain"])
def test_s4_filled_memory(deterministic: None, checking: bool) -> None:
    """Every dtype has eager's filling, also around what a kernel writes in part."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, part = torch.empty(3), torch.empty(2, 3)
        exp_any_into(x, out)
        accumulate_any(x, part[0])
        numbers = [torch.empty(2, dtype=dtype) for dtype in (torch.int32, torch.bool, torch.uint8, torch.float16)]
        return out, part, *numbers, x.new_empty(2), torch.empty_strided((2, 2), (1, 2)), torch.empty_like(x)

    given = torch.randn(3)
    wanted = function(given)
    result = compiled(function, Record(), verify=checking, poison=checking)(given)
    for mine, theirs in zip(result, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, check_stride=True)
    assert wanted[1][1].isnan().all()


# S5: scalars ------------------------------------------------------------------------------------------
@kernel_op("cases_surroundings::scale_into", mutates_args=("out",))
def scale_into(x: torch.Tensor, out: torch.Tensor, scale: float) -> None:
    return x * scale


@kernel_op("cases_surroundings::describe_into", mutates_args=("out",))
def describe_into(x: torch.Tensor, out: torch.Tensor, flag: bool, count: int, scale: float) -> None:
    """Different for each type and value of the scalars."""
    assert (type(flag), type(count), type(scale)) == (bool, int, float)
    return x + 100 if flag else x * count + scale


def scaled(x: torch.Tensor, scale: Any) -> torch.Tensor:
    out = torch.empty_like(x)
    scale_into(x, out, scale)
    return out


@pytest.mark.parametrize("dynamic", [None, True, False], ids=str)
def test_s5_scalars_of_one_compiled_function(dynamic: bool | None) -> None:
    run = compiled(scaled, Record(), dynamic=dynamic)
    for scale in (1.0, 2.0, True, 1, 3.0, 7, 0.5, float("inf")):
        x = torch.randn(3)
        torch.testing.assert_close(run(x, scale), scaled(x, scale))


def test_s5_negative_zero_is_not_zero() -> None:
    for scale in (0.0, -0.0, 0.0):
        x = torch.ones(3)
        result = compiled(scaled, Record())(x, scale)
        assert torch.equal(torch.signbit(result), torch.signbit(x * scale))


def test_s5_true_one_and_one_point_zero_are_different_arguments() -> None:
    def function(x: torch.Tensor, flag: bool, count: int, scale: float) -> torch.Tensor:
        out = torch.empty_like(x)
        describe_into(x, out, flag, count, scale)
        return out

    for scalars in ((True, 1, 1.0), (False, 1, 1.0), (False, 0, 1.0), (True, 0, 0.0), (False, 1, 0.0)):
        check(function, lambda given=scalars: (torch.randn(3), *given), fresh=("describe_into.out",))


@pallas_kernel(autotune_effort="none")
def helion_by_type_into(x: torch.Tensor, out: torch.Tensor, by: hl.constexpr) -> None:
    """Different for ``True``, an integer and a float of the same value."""
    for tile in hl.tile(out.size()):
        if by is True:
            out[tile] = x[tile] + 100
        elif isinstance(by, int):
            out[tile] = x[tile] + by
        else:
            out[tile] = x[tile] * by - 1


def test_s5_true_one_and_one_point_zero_are_different_constants_of_helion() -> None:
    def function(x: torch.Tensor, by: Any) -> torch.Tensor:
        out = torch.empty_like(x)
        helion_by_type_into(x, out, by)
        return out

    def model(x: torch.Tensor, by: Any) -> torch.Tensor:
        return x + 100 if by is True else x + by if isinstance(by, int) else x * by - 1

    for by in (1, True, 1.0, 2, 2.0, 1):
        check(function, lambda given=by: (torch.randn(3), given), model=model, allocations=0)


# S6: random seeds -------------------------------------------------------------------------------------
@kernel_op("cases_surroundings::noise_into", mutates_args=("out",))
def noise_into(seed: torch.Tensor, out: torch.Tensor) -> None:
    return jax.random.uniform(jax.random.key(seed[0]), out.shape, out.dtype)


@kernel_op("cases_surroundings::noise_of_into", mutates_args=("out",))
def noise_of_into(out: torch.Tensor, seed: int) -> None:
    return jax.random.uniform(jax.random.key(seed), out.shape, out.dtype)


def test_s6_seed_tensor_drawn_outside() -> None:
    """The same under the same ``manual_seed``, another one at the next draw; one program for all seeds."""

    def noise(seed: torch.Tensor) -> torch.Tensor:
        out = torch.empty(64)
        noise_into(seed, out)
        return out

    record = Record()
    run = compiled(noise, record)

    def draws() -> list[torch.Tensor]:
        torch.manual_seed(7)
        return [run(torch.randint(0, 2**31 - 1, (1,), dtype=torch.int32)) for _ in range(2)]

    first, again = draws(), draws()
    assert all(map(torch.equal, first, again)) and not torch.equal(*first)
    assert record.fresh == ("noise_into.out",)


def test_s6_python_seed() -> None:
    def noise(seed: int) -> torch.Tensor:
        out = torch.empty(64)
        noise_of_into(out, seed)
        return out

    run = compiled(noise, Record())
    results = {seed: run(seed) for seed in (3, 4, 5)}
    assert all(torch.equal(run(seed), result) for seed, result in results.items())
    assert not torch.equal(results[3], results[4]) and not torch.equal(results[4], results[5])


# S7: 64 bits ------------------------------------------------------------------------------------------
WIDE = {
    torch.int64: lambda: torch.tensor([2**40 + 1, -(2**50) - 3, 5]),
    torch.uint64: lambda: torch.tensor([2**40 + 1, 2**63 + 3, 5], dtype=torch.uint64),
    torch.float64: lambda: torch.tensor([1 + 2.0**-40, -3.0, 1e300], dtype=torch.float64),
}


@kernel_op("cases_surroundings::copy_into", mutates_args=("out",))
def copy_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return x + jnp.zeros_like(x)


@pallas_kernel(autotune_effort="none")
def helion_copy_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = x[tile]


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("kernel", [copy_into, helion_copy_into], ids=IDS)
def test_s7_64_bits_are_kept(kernel: Kernel, dtype: torch.dtype) -> None:
    """Bits that 32 cannot hold arrive."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernel(x, out)
        return out

    check(function, lambda: (WIDE[dtype](),), model=lambda x: x.clone(), fresh=(written(kernel),), allocations=0)


def test_s7_64_bits_leave_jax_as_it_was() -> None:
    before = jax.config.jax_enable_x64
    check(lambda x: x * 3 + 1, lambda: (WIDE[torch.int64](),))
    assert jax.config.jax_enable_x64 == before and jnp.ones(2).dtype == jnp.float32


# S8: operators of others ------------------------------------------------------------------------------
@torch.library.custom_op("cases_surroundings::cos", mutates_args=())
def foreign_cos(x: torch.Tensor) -> torch.Tensor:
    return x.cos()


foreign_cos.register_fake(torch.empty_like)
foreign_cos.register_autograd(
    lambda ctx, gradient: -gradient * ctx.saved_tensors[0].sin(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@torch.library.custom_op("cases_surroundings::double_", mutates_args=("x",))
def foreign_double_(x: torch.Tensor) -> None:
    x.mul_(2)


def between_programs(x: torch.Tensor) -> torch.Tensor:
    return foreign_cos(x * 2) + 1


def first_and_last(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    y = foreign_cos(x)
    out = torch.empty_like(y)
    exp_any_into(y, out)
    return foreign_cos(out), out, x.shape[0]


def mutates_input(x: torch.Tensor) -> torch.Tensor:
    foreign_double_(x)
    return x + 1


def mutates_value_with_views(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The view is taken in one program, the memory is written in eager, both are used in the next program."""
    y = x + 1
    row = y[0]
    foreign_double_(y)
    return row * 3, y + row


def nothing_else(x: torch.Tensor) -> torch.Tensor:
    foreign_double_(x)
    return foreign_cos(x)


AROUND = (between_programs, first_and_last, mutates_input, mutates_value_with_views, nothing_else)


@pytest.mark.parametrize("function", AROUND, ids=lambda function: function.__name__)
def test_s8_fallback_runs_foreign_operators_in_eager(function: Callable[..., Any]) -> None:
    """Without the option each is refused; with it results, mutated inputs and shared memory are eager's."""
    assert refusal(function, made(2, 3)).code == "TL201"
    given, own = torch.randn(2, 3), None
    own = given.clone()
    torch._dynamo.reset()
    run = torch.compile(function, backend="helion_tpu", options={**CHECKING, "fallback": "eager"})
    compare(run(own), function(given))
    compare(own, given)


def test_s8_fallback_gradients() -> None:
    given = torch.randn(2, 3, requires_grad=True)
    own = given.detach().clone().requires_grad_()
    torch._dynamo.reset()
    run = torch.compile(between_programs, backend="helion_tpu", options={**CHECKING, "fallback": "eager"})
    run(own).pow(2).sum().backward()
    between_programs(given).pow(2).sum().backward()
    compare(own.grad, given.grad)


@pytest.mark.parametrize("dynamic", [None, True, False], ids=str)
def test_s8_fallback_at_other_shapes(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    run = torch.compile(first_and_last, backend="helion_tpu", dynamic=dynamic, options={"fallback": "eager"})
    for size in (2, 4, 5, 2):
        x = torch.randn(size, 3)
        compare(run(x), first_and_last(x))


def test_s8_fallback_cuts_around_the_operator() -> None:
    """The parts before and after are programs; the operator is in neither."""

    class Parts(Record):
        texts: list[str] = []

        def compiled(self, program: Any, source: Any) -> None:
            self.texts.append(source.text)

    def backend(module: torch.fx.GraphModule, examples: Any) -> Any:
        return helion_tpu(module, examples, options={**CHECKING, "fallback": "eager"}, observers=[Parts()])

    torch._dynamo.reset()
    x = torch.randn(2, 3)
    compare(torch.compile(between_programs, backend=backend)(x), between_programs(x))
    before, after = Parts.texts
    assert "aten.mul" in before and "aten.add" in after and "cos" not in before + after
