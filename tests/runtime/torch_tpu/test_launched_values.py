"""What the torch_tpu runtime does around a launch, by values: torch_tpu stood in for by JAX's CPU.

The stand-in takes CPU tensors, runs what was exported, and poisons what was donated, as a TPU may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import pytest
import torch

from tpu_lowering import backend, compat, kernel_op
from tpu_lowering.codegen import load
from tpu_lowering.ir import arrays
from tpu_lowering.ir.chips import TPU7X
from tpu_lowering.kernels import tpu_tensors
from tpu_lowering.options import Options
from tpu_lowering.runtime import torch_tpu

CPU = torch.device("cpu")
real_load = load.load


class StandIn:
    """torch_tpu's registry, and its callable."""

    def __init__(self) -> None:
        self.exported: dict[tuple[str, str], bytes] = {}
        self.made: dict[bytes, Any] = {}
        self.donated: list[list[int]] = []

    def callable(self, name: str, jitted: Any, donated: Sequence[int]) -> Any:
        exporter = jax.export.export(jitted, platforms=["cpu"])

        class Callable_:
            @staticmethod
            def exported(*specs: Any) -> Any:
                made = exporter(*specs)
                self.made[bytes(made.mlir_module_serialized)] = made
                return made

        return Callable_

    def register_custom_kernel(self, name: str, key: str, *, serialized_mlir_module: bytes) -> None:
        self.exported[name, key] = bytes(serialized_mlir_module)

    def call_custom_kernel(
        self, name: str, key: str, *, inputs: list[torch.Tensor], output_shapes: Any, donate_argnums: list[int]
    ) -> list[torch.Tensor]:
        self.donated.append(donate_argnums)
        with compat.enable_x64(True):
            copies = [arrays.to_jax(tensor.clone().contiguous()) for tensor in inputs]
            results = self.made[self.exported[name, key]].call(*copies)
            given = [arrays.to_torch(result) for result in jax.tree.leaves(results)]
        for position in donate_argnums:
            assert torch_tpu.owns_memory(inputs[position])
            inputs[position].fill_(77)
        assert [(r.shape, r.dtype) for r in given] == [(o.shape, o.dtype) for o in output_shapes]
        return given


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(tpu_tensors, "DEVICE", "cpu")
    monkeypatch.setattr(tpu_tensors, "are_real", lambda _: False)  # in eager torch kernels run as on any CPU tensor
    monkeypatch.setattr(tpu_tensors, "chip", lambda: TPU7X)
    monkeypatch.setattr(compat, "tpu_callable", made.callable)
    monkeypatch.setattr(compat, "tpu_kernels", lambda: made)
    monkeypatch.setattr(
        backend,
        "runtime_for",
        lambda graph, *_: torch_tpu.TorchTpuRuntime(graph, CPU),  # the device of real tensors
    )
    monkeypatch.setattr(torch_tpu.load, "load", lambda program, source, _: real_load(program, source, "vectorized"))
    torch._dynamo.reset()
    return made


def check(model: Callable[..., Any], *arguments: Any, calls: int = 2, **options: Any) -> None:
    """Compares results and arguments after some calls with eager's, strides too."""
    Options.create(options)
    mine = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    run = torch.compile(model, backend="helion_tpu", fullgraph=True, options=options)
    with torch.no_grad():
        for _ in range(calls):
            expected, actual = model(*arguments), run(*mine)
            torch.testing.assert_close(actual, expected, check_stride=True)
            torch.testing.assert_close(mine, list(arguments))


@kernel_op("tests_launched::scale_into", mutates_args=("out",))
def scale_into(x: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    return x * factor


def test_a_destination_passing_kernel(stand_in: StandIn) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        scale_into(x + 1, out, 3.0)
        return out - 1

    check(model, torch.randn(4, 8))
    assert stand_in.donated == [[], []]


def test_mutated_arguments_get_their_own_new_values(stand_in: StandIn) -> None:
    """Of one shape each, so that a wrong order would show; the last one is written to and never read."""

    def model(
        a: torch.Tensor, x: torch.Tensor, b: torch.Tensor, only_written: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b.mul_(0.5).add_(x)
        only_written.copy_(b + 5)
        a.add_(b * 3)
        return a * 2, x - b

    check(model, *(torch.randn(3, 4) for _ in range(4)), calls=3)
    assert [len(donated) for donated in stand_in.donated] == [2, 2, 2]


def test_a_kernel_that_updates_a_cache(stand_in: StandIn) -> None:
    def model(x: torch.Tensor, cache: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, position, x[None])
        position.add_(1)
        return cache.sum(0)

    check(model, torch.randn(4), torch.zeros(6, 4), torch.tensor([0]), calls=4)
    assert [len(donated) for donated in stand_in.donated] == [2] * 4


def test_a_mutated_view_keeps_the_memory_around_it(stand_in: StandIn) -> None:
    base = torch.arange(12.0).reshape(4, 3)
    run = torch.compile(lambda row: row.add_(2) * 3, backend="helion_tpu", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(run(base[1]), (torch.arange(3.0, 6.0) + 2) * 3)
        torch.testing.assert_close(run(base.t()[2]), torch.tensor([4.0, 9.0, 10.0, 13.0]) * 3)
    torch.testing.assert_close(base, torch.tensor([[0.0, 1, 4], [5, 6, 9], [6, 7, 10], [9, 10, 13]]))
    assert stand_in.donated == [[0], [0]]


def test_views_of_one_tensor_of_which_one_is_written_to(stand_in: StandIn) -> None:
    base, mine = torch.arange(12.0).reshape(3, 4), torch.arange(12.0).reshape(3, 4)

    def model(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return b * 2

    with torch.no_grad():
        expected = model(base[:2], base[1:])
        actual = torch.compile(model, backend="helion_tpu", fullgraph=True)(mine[:2], mine[1:])
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(mine, base)


def test_results_with_eagers_strides_and_memory(stand_in: StandIn) -> None:
    def model(x: torch.Tensor) -> tuple[Any, ...]:
        y = x * 2
        return y.permute(2, 0, 1), y[1:], x.t() if x.ndim == 2 else None, x.transpose(0, 1).exp(), x, x.shape[0]

    check(model, torch.randn(2, 3, 4))
    assert stand_in.donated == [[], []]


def test_whole_numbers_and_double_precision_keep_their_bits(stand_in: StandIn) -> None:
    check(
        lambda x, d, m: (x + 1, torch.where(m, x, -x), d + 1e-12, d.sum()),
        torch.tensor([2**62 + 1, -(2**53) - 1, 7]), torch.rand(5, dtype=torch.float64), torch.tensor([True, False, True]),
    )  # fmt: skip


def test_constants_are_part_of_the_program(stand_in: StandIn) -> None:
    check(lambda x: x + torch.tensor([1.0, 2.0, 4.0]), torch.randn(2, 3))


def test_one_registration_for_many_calls(stand_in: StandIn) -> None:
    check(lambda x: x.exp(), torch.randn(3), calls=4)
    assert len(stand_in.exported) == 1 and len(stand_in.donated) == 4


def test_gradients(stand_in: StandIn) -> None:
    weight, x = torch.randn(4, 4, requires_grad=True), torch.randn(3, 4)
    run = torch.compile(lambda x: (x @ weight).tanh().sum(), backend="helion_tpu", fullgraph=True)
    run(x).backward()
    actual = weight.grad
    weight.grad = None
    (x @ weight).tanh().sum().backward()
    torch.testing.assert_close(actual, weight.grad)
    assert len(stand_in.exported) == 2


def test_a_digest_is_of_what_is_computed_alone() -> None:
    def exported(function: Callable[..., Any]) -> str:
        return jax.export.export(jax.jit(function), platforms=["tpu"])(
            jax.ShapeDtypeStruct((4,), "float32")
        ).mlir_module()

    def double(x: jax.Array) -> jax.Array:
        return x * 2

    def moved() -> Callable[..., Any]:
        def double(x: jax.Array) -> jax.Array:
            return x * 2

        return double

    first, second, other = exported(double), exported(moved()), exported(lambda x: x * 3)
    assert first != second  # source locations differ
    assert tpu_tensors.digest(first) == tpu_tensors.digest(second) != tpu_tensors.digest(other)
