"""Programs on torch_xla's tensors: values, dtypes, views, arguments that are written to, sizes, draws, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_xla

from tests.runtime.torch_xla.xla_watch import check, compiled, count, on_xla, same, settle

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_cross_the_edge_unchanged(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 2, 5, 100, 0], dtype=torch.float32).to(dtype).reshape(2, 3)
    check(lambda x: (x.flip(0), x.reshape(3, 2).t()), x)


def test_whole_numbers_keep_all_of_their_bits() -> None:
    x = torch.tensor([2**62 + 1, -(2**53) - 1, 7])
    check(lambda x, m: (x + 1, x.sum(), torch.where(m, x, -x), x % 3), x, torch.tensor([True, False, True]))


def test_float64_stays_float64() -> None:
    check(lambda x: (x + 1e-12, x.sum()), torch.rand(5, dtype=torch.float64), rtol=1e-15, atol=0.0)


def test_results_that_are_transposed() -> None:
    check(lambda x: (x.permute(2, 0, 1) * 2, x.transpose(0, 1).exp()), torch.randn(2, 3, 4))


def test_arguments_that_are_transposed_or_views() -> None:
    base = torch_xla.device()
    x = torch.randn(4, 6)
    run = compiled(lambda a, b: a @ b + a.sum())
    xla = x.to(base)
    same(x.t() @ x[:, 2:4] + x.sum(), run(xla.t(), xla[:, 2:4]))


def test_scalars_none_and_sizes_come_back() -> None:
    check(lambda x: (x.sum(), None, x.shape[0], 3), torch.randn(3))


def test_results_without_elements() -> None:
    check(lambda x: (x[:0] * 2, torch.cat([x[:0], x])), torch.randn(3, 2))


def test_a_graph_without_arguments() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.arange(5, device=x.device) * 2

    check(model, torch.zeros(1))


def test_an_argument_is_returned() -> None:
    check(lambda x: (x, x.view(-1), x * 1), torch.randn(2, 3))


def test_constants_are_on_the_device() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.0, 2.0, 4.0], device=x.device)

    check(model, torch.randn(2, 3))
    arguments, run = on_xla([torch.randn(2, 3)]), compiled(model)
    run(*arguments)
    assert count(lambda: run(*arguments)).to_device == 0


def test_results_that_are_views_of_each_other_stay_so() -> None:
    def model(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x * 2
        z = y.t().contiguous().exp()
        return y, y[1:, ::2], z, z.t()

    (x,) = on_xla([torch.randn(4, 6)])
    with torch.no_grad():
        y, part, z, turned = compiled(model)(x)
        y.add_(1)
        z.mul_(3)
    same(y.cpu()[1:, ::2], part)
    same(z.cpu().t(), turned)


# Arguments that are written to --------------------------------------------------------------------------
def test_mutated_arguments() -> None:
    def model(x: torch.Tensor, total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        total.add_(x.sum(0))
        count.add_(x.shape[0])
        return total / count

    check(model, torch.randn(4, 3), torch.zeros(3), torch.tensor(0), calls=3)


def test_a_mutated_view_writes_to_its_base() -> None:
    cache = torch.zeros(4, 3)
    (xla,) = on_xla([cache])

    def model(row: torch.Tensor) -> torch.Tensor:
        row.add_(2)
        return row * 3

    run = compiled(model)
    with torch.no_grad():
        same(torch.full((3,), 6.0), run(xla[1]))
    settle()
    same(torch.tensor([0.0, 2.0, 0.0, 0.0])[:, None].expand(4, 3), xla)


def test_the_buffer_of_a_mutated_argument_is_donated_at_the_step_boundary() -> None:
    def model(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        state.mul_(0.5).add_(x)
        return state.sum()

    state, x = on_xla([torch.zeros(64, 64), torch.ones(64, 64)])
    run = compiled(model)
    with torch.no_grad():
        counts = count(lambda: run(state, x))
    assert counts.donated == 1
    same(torch.ones(64, 64), state)


def test_a_copy_made_before_survives_the_donation() -> None:
    state, x = on_xla([torch.zeros(8), torch.ones(8)])
    settle()
    kept, detached = state.clone(), state.detach()
    with torch.no_grad():
        compiled(lambda state, x: state.add_(x))(state, x)
    settle()
    same(torch.zeros(8), kept)
    same(torch.ones(8), detached)


# Sizes, draws, gradients --------------------------------------------------------------------------------
@pytest.mark.parametrize("buckets", ["", "power_of_two"])
def test_dynamic_sizes(buckets: str) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x * 2, -1).sum(0)

    torch._dynamo.reset()
    run = torch.compile(model, backend="helion_tpu", dynamic=True, options={"buckets": buckets})
    for length in (3, 5, 6):
        x = torch.randn(length, 4)
        with torch.no_grad():
            same(model(x), run(*on_xla([x])))


@pytest.mark.parametrize("source", ["jax", "torch"])
def test_draws_follow_torchs_seed(source: str) -> None:
    (x,) = on_xla([torch.ones(1000)])
    run = compiled(lambda x: torch.nn.functional.dropout(x, 0.25), random=source)
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = run(x).cpu(), run(x).cpu()
        torch.manual_seed(0)
        again = run(x).cpu()
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert 200 < int((first == 0).sum()) < 300


def test_training_agrees_with_eager() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    x, target = torch.randn(5, 6), torch.randn(5, 2)

    def train(device: Any, wrap: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
        model.load_state_dict(weights)
        module = model.to(device)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        run, losses = wrap(module), []
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(run(x.to(device)), target.to(device))
            loss.backward()
            optimizer.step()
            if device != "cpu":
                torch_xla.sync()
            losses.append(float(loss))
        return losses, {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

    expected, state = train("cpu", lambda module: module)
    actual, trained = train(torch_xla.device(), compiled)
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    for name, value in state.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-6)


def test_verify_and_poison() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out.copy_(x * 2)
        return out + torch.ones(3, device=x.device)

    (x,) = on_xla([torch.randn(2, 3)])
    with torch.no_grad():
        same(x.cpu() * 2 + 1, compiled(model, verify=True, poison=True)(x))


def test_what_is_pending_is_computed_with_the_program() -> None:
    """One step that begins and ends in eager torch_xla is one execution."""
    (x,) = on_xla([torch.randn(4, 4)])
    run = compiled(lambda y: torch.softmax(y, -1) + 1)

    def step() -> None:
        with torch.no_grad():
            step.result = run(x * 2) - 1  # type: ignore[attr-defined]

    step()
    counts = count(step)
    assert (counts.executions, counts.to_host, counts.to_device, counts.fallbacks) == (1, 0, 0, ())
    same(torch.softmax(x.cpu() * 2, -1), step.result)  # type: ignore[attr-defined]


def test_views_of_one_tensor_that_are_only_read() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    (base,) = on_xla([x])
    with torch.no_grad():
        same(x[:2] @ x[1:].t(), compiled(lambda a, b: a @ b.t())(base[:2], base[1:]))


def test_results_that_are_views_of_arguments() -> None:
    def model(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.view(-1), x[1:], x.t(), x[:, 1:3], x * 1

    x = torch.arange(20.0).reshape(5, 4)
    (base,) = on_xla([x])
    with torch.no_grad():
        for mine, xla in ((x, base), (x[1:4], base[1:4]), (x[:, 2:], base[:, 2:]), (x.t(), base.t())):
            if mine.is_contiguous():
                same(model(mine), compiled(model)(xla))
            same(mine[1:] + 1, compiled(lambda x: (x[1:], x + 1)[0] + 1)(xla))


def test_a_result_that_is_a_view_of_a_mutated_argument() -> None:
    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.mul_(2)
        return x[1:], x.sum()

    check(model, torch.arange(6.0).reshape(3, 2))


def test_what_a_forward_saves_of_its_arguments_is_the_callers() -> None:
    """The same buffers of torch_xla's, not copies."""
    weight, x = (t.requires_grad_() for t in on_xla([torch.randn(8, 8), torch.randn(4, 8)]))
    settle()
    result = compiled(lambda x, weight: torch.tanh(x @ weight))(x, weight)
    saved = result.grad_fn.saved_tensors
    torch_xla.sync(wait=True)  # a buffer has no address before its program has run
    pointer = torch_xla._XLAC._unsafe_buffer_pointer
    assert {pointer(x), pointer(weight)} <= {pointer(tensor) for tensor in saved}
