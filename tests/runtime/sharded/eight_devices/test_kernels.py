"""The user's kernels on a mesh: each device runs them on its part, as their rules say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from jax.experimental import pallas as pl

import tpu_lowering
from tests.runtime.sharded.eight_devices.conftest import MESH, refused, sharded
from tpu_lowering import kernel_op, register_kernel
from tpu_lowering.ir.kernels import kernel_call

traced: list[tuple[int, ...]] = []


def blocks(function: Callable[[jax.Array], jax.Array], x: jax.Array, out: Any) -> jax.Array:
    """A kernel over blocks of eight rows, in destination-passing style."""
    traced.append(x.shape)

    def body(x_ref: Any, _: Any, out_ref: Any) -> None:
        out_ref[...] = function(x_ref[...])

    block = pl.BlockSpec((8, x.shape[1]), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
    return pl.pallas_call(
        body, grid=(x.shape[0] // 8,), in_specs=[block, block], out_specs=block, out_shape=shape,
        input_output_aliases={1: 0},
    )(x, out)  # fmt: skip


@kernel_op("sharded::exp_into", mutates_args=("out",), sharding="rows _, rows _ -> rows _")
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return blocks(jnp.exp, x, out)  # type: ignore[return-value]


@kernel_op("sharded::sin_into", mutates_args=("out",))
def sin_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return blocks(jnp.sin, x, out)  # type: ignore[return-value]


def keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def gradients(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight = ctx.saved_tensors
    op = torch.ops.sharded.product
    return op(gradient, weight.t().contiguous()), op(x.t().contiguous(), gradient)


@kernel_op("sharded::product", sharding="i j, j k -> i k", backward=gradients, setup_context=keep)
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    traced.append((*x.shape, *weight.shape))
    return jnp.matmul(x, weight, precision="highest")  # type: ignore[return-value]


def written(x: torch.Tensor, op: Any = torch.ops.sharded.exp_into) -> torch.Tensor:
    x = x * 2
    out = torch.empty_like(x)
    op(x, out)
    return out + 1


def collectives(program: Any) -> set[str]:
    return set(re.findall(r"all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute",
                          program.compiled.as_text()))  # fmt: skip


def allocations(program: Any) -> list[Any]:
    return [node for node in program.program.module.graph.nodes if "empty" in str(node.target)]


@pytest.fixture(autouse=True)
def fresh_traces() -> None:
    tpu_lowering.clear()
    traced.clear()


@pytest.mark.parametrize("how", ["vectorized", "interpret"])
def test_a_pallas_kernel_in_destination_passing_style(how: str, programs: Any) -> None:
    """The allocation is gone, each device has its rows, and nothing is gathered around the kernel."""
    x = torch.randn(128, 16)
    run = sharded(written, {"x": ("data",)}, cpu_kernels=how)
    torch.testing.assert_close(run(x), torch.exp(x * 2) + 1)
    (program,) = programs
    assert not allocations(program) and not collectives(program)
    assert traced == [(128, 16), (32, 16)]
    (call,) = [node for node in program.program.module.graph.nodes if node.target is kernel_call]
    assert call.args[1][1] is None  # a fresh buffer of the part's size
    assert "f32[32,16]" in program.compiled.as_text() and "f32[128,16]" not in program.compiled.as_text()


def test_a_whole_dimension_is_gathered_and_rows_stay_split(programs: Any) -> None:
    x = torch.randn(128, 16)
    run = sharded(written, {"x": ("data", "model")})
    torch.testing.assert_close(run(x), torch.exp(x * 2) + 1)
    assert collectives(programs[0]) == {"all-gather"} and traced == [(128, 16), (32, 16)]


def test_contents_that_matter_stay(programs: Any) -> None:
    @kernel_op("sharded::add_into", mutates_args=("out",), sharding="i j, i j -> i j")
    def add_into(x: torch.Tensor, out: torch.Tensor) -> None:
        return out + x  # type: ignore[return-value]

    def function(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        torch.ops.sharded.add_into(x, total)
        return total * 2

    x, total = torch.randn(8, 4), torch.ones(8, 4)
    run = sharded(function, {"x": ("data", "model"), "total": ("data", "model")})
    torch.testing.assert_close(run(x, total), (x + 1) * 2)
    torch.testing.assert_close(total, x + 1)
    assert not collectives(programs[0])


def test_a_product_and_its_gradients() -> None:
    """Contracted dimensions are whole: in the backward of the weight, the rows that the forward split."""
    x = torch.randn(64, 16)
    weight = torch.randn(16, 32, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    run = sharded(lambda x, weight: product(x, weight).square().sum(), {"x": ("data",), "weight": (None, "model")})
    run(x, weight).backward()
    (x @ twin).square().sum().backward()
    torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-4, atol=1e-4)
    parts = [shapes for shapes in traced if shapes not in ((64, 16, 16, 32), (16, 64, 64, 32))]
    assert (16, 16, 16, 16) in parts and (16, 64, 64, 16) in parts


def test_activations_say_how_a_kernel_is_split(programs: Any) -> None:
    """Through products, reshapes and transposes the axes of named tensors are followed; else a module is named."""

    class Rows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.rows = torch.nn.Linear(16, 8), Rows()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return written(self.rows(self.fc(x)).view(-1, 8))

    model, x = Model(), torch.randn(8, 16, 16)
    with torch.no_grad():
        expected = model(x)
    for table, part in (({"x": ("data",)}, (128, 8)), ({"x": ("data",), "rows": ("data",)}, (32, 8))):
        torch._dynamo.reset()
        fresh_traces_now()
        with torch.no_grad():
            torch.testing.assert_close(sharded(model, table)(x), expected, rtol=1e-5, atol=1e-5)
        assert traced[-1] == part

    def followed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return written(torch.softmax(x.transpose(0, 1).reshape(-1, 4) @ weight, 1).relu())

    x, weight = torch.randn(8, 16, 4), torch.randn(4, 8)
    expected = followed(x, weight)
    fresh_traces_now()
    torch.testing.assert_close(sharded(followed, {"x": (None, "data")})(x, weight), expected)
    assert traced[-1] == (32, 8) and not collectives(programs[-1])


def fresh_traces_now() -> None:
    tpu_lowering.clear()
    traced.clear()


def test_a_kernel_that_no_operand_tells_how_to_split() -> None:
    report = tpu_lowering.explain(written, torch.randn(16, 8), options={"mesh": MESH, "device": "cpu"})
    (note,) = report.notes
    assert note.code == "TL716" and note.nbytes == 0
    assert note.reason == "no operand of sharded::exp_into is known to be split along a dimension that its rule names"
    assert note.remedy == "name in shardings an argument, a parameter or a module whose result the kernel is given"


def test_passes_are_verified() -> None:
    x = torch.randn(64, 16)
    for chosen in ({"verify": True, "poison": True}, {"passes": False}):
        torch._dynamo.reset()
        torch.testing.assert_close(sharded(written, {"x": ("data",)}, **chosen)(x), torch.exp(x * 2) + 1)


def test_a_kernel_without_a_rule() -> None:
    text = refused(lambda x: written(x, torch.ops.sharded.sin_into), {"x": ("data",)}, torch.ones(16, 8))
    assert re.sub(r"test_kernels\.py:\d+", "test_kernels.py:LINE", text) == (
        "[TL712] kernel without a rule for its sharding: sharded::sin_into\n"
        "  at   test_kernels.py:LINE in written: op(x, out)\n"
        "  why  expected a rule that says which dimensions may be split, because XLA would run the whole kernel on every "
        "device, got none\n"
        "  fix  give it one: kernel_op(..., sharding='i j -> i j') or register_kernel(..., sharding='i j -> i j')"
    )


def test_a_helion_kernel() -> None:
    from bench.kernels import KERNELS

    (case,) = [case for case in KERNELS if case.name == "exp"]
    arguments = case.example(True)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(case.model, backend="helion_tpu", options={"mesh": MESH, "device": "cpu"})(*arguments)
    text = str(caught.value.inner_exception)
    assert text.startswith("[TL712] kernel without a rule for its sharding: ")
    assert text.endswith("fix  write it as a kernel_op with one: kernel_op(..., sharding='i j -> i j')")


def test_a_rule_for_other_operands() -> None:
    @kernel_op("sharded::ranks", sharding="i j -> i j")
    def ranks(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    text = refused(lambda x: ranks(x), {"x": ("data",)}, torch.ones(8))
    assert re.sub(r"test_kernels\.py:\d+", "test_kernels.py:LINE", text) == (
        "[TL715] sharding rule that does not fit a kernel: sharding of sharded::ranks\n"
        '  at   test_kernels.py:LINE in <lambda>: text = refused(lambda x: ranks(x), {"x": ("data",)}, torch.ones(8))\n'
        "  why  expected a name for each dimension of operand 0, which is f32[8], got 'i j' in 'i j -> i j'\n"
        "  fix  write a term for each operand and each result, with a name for each dimension"
    )


def test_a_registered_kernel_has_a_rule_too(programs: Any) -> None:
    with torch.library._scoped_library("sharded_registered", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_fake("sharded_registered::twice", torch.empty_like, lib=library)

        @register_kernel(torch.ops.sharded_registered.twice, sharding="i j -> i j")
        def twice(x: Any) -> Any:
            return x * 2

        x = torch.randn(8, 4)
        run = sharded(lambda x: torch.ops.sharded_registered.twice(x), {"x": ("data", "model")})
        assert torch.equal(run(x), x * 2)
        assert "f32[2,2]" in programs[0].compiled.as_text() and not collectives(programs[0])
