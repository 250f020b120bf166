"""Refusals, word for word: each says where, what was expected, what came instead, and what to do.

A refusal loses nothing: arguments are as they were, and the next compilation works. Those whose remedy can be run are
in ``remedies/``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
import torch
from expecttest import assert_expected_inline as inline
from jax.experimental import pallas as pl
from torch.fx.experimental.proxy_tensor import make_fx

import tpu_lowering
from tests.refusals.remedies import refused, says, text
from tpu_lowering import TpuLoweringError, kernel_op
from tpu_lowering.backend import helion_tpu
from tpu_lowering.lower.table import TABLE
from tpu_lowering.options import Options

# Options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets", [0, -8, True, 8.0, "powers", [], [8, 4], [0, 8], ["8"], None], ids=str)
def test_wrong_buckets(buckets: Any) -> None:
    with pytest.raises(TpuLoweringError) as caught:
        Options.create({"buckets": buckets})
    shown = tuple(buckets) if isinstance(buckets, list) else buckets
    expected = "'power_of_two', a step such as 512, or a list of rising sizes such as [128, 512, 2048]"
    assert text(caught.value) == (
        f"""\
[TL102] option has the wrong type or value: 'buckets'
  why  expected {expected}, got {shown!r}
  fix  pass {expected} as options['buckets']"""
    )


def test_mode_is_ignored_with_one_warning() -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = torch.compile(lambda x: x + 1, backend=helion_tpu_with_mode)
        assert torch.equal(run(torch.ones(2)), torch.full((2,), 2.0))
        run(torch.ones(2))
    messages = [str(warning.message) for warning in caught if "helion_tpu" in str(warning.message)]
    assert messages == [
        "helion_tpu has no modes: mode='max-autotune' is ignored. Options of helion_tpu go through options={...}."
    ]


def helion_tpu_with_mode(module: torch.fx.GraphModule, examples: Any) -> Any:
    """As ``torch.compile(..., mode="max-autotune")`` calls a backend by name."""
    return helion_tpu(module, examples, mode="max-autotune")


# Kernels ----------------------------------------------------------------------------------------------


@kernel_op("refusals::unchanged", mutates_args=("out",))
def unchanged(x: torch.Tensor, out: torch.Tensor) -> None:
    return out


def _call(body: Callable[..., None], aliases: dict[int, int]) -> Callable[..., Any]:
    def run(x: Any, out: Any) -> Any:
        shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
        return pl.pallas_call(body, out_shape=shape, input_output_aliases=aliases)(x, out)

    return run


@kernel_op("refusals::never_stores", mutates_args=("out",))
def never_stores(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, old: Any, out: Any) -> None:
        x[...] + old[...]

    return _call(body, {1: 0})(x, out)


@pytest.mark.parametrize(
    "kernel, why",
    [
        (unchanged, "the function returns the argument unchanged"),
        (never_stores, "the kernel's body never stores to it"),
    ],
)
def test_a_declared_write_that_is_never_made(kernel: Any, why: str) -> None:
    """A warning, once; the value is what it was."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = x * 3
        kernel(x, out)
        return out

    with pytest.warns(UserWarning) as caught:
        results = [function(torch.ones(5)), torch.compile(function, backend="helion_tpu")(torch.ones(5))]
    assert [result.tolist() for result in results] == [[3.0] * 5] * 2
    name = kernel._schema.name
    (said,) = [str(warning.message) for warning in caught if "TL508" in str(warning.message)]
    assert said.partition(" of ")[0] == "[TL508] argument 'out'"
    assert said.partition("defined at ")[2].partition(" in ")[2] == (
        f"{name.partition('::')[2]}, is declared as mutated and keeps its value: {why}"
    )
    report = tpu_lowering.explain(function, torch.ones(5))
    assert [note.code for note in report.notes if note.code != "TL506"] == ["TL508"]


# Operators and values ---------------------------------------------------------------------------------


def test_operator_without_lowering_runs_in_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy of TL301, with gradients and with a whole graph asked for; nothing else is cut off."""
    monkeypatch.delitem(TABLE, torch.ops.aten.erfc.default)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.special.erfc((x * 2).clamp_(-1, 1)) + 1
        return torch.nn.functional.dropout(y.softmax(0), 0.0) @ y

    x, own = (torch.randn(4).requires_grad_() for _ in range(2))
    with torch.no_grad():
        own.copy_(x)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="helion_tpu", options={"fallback": "eager"}, fullgraph=True)
    torch.testing.assert_close(compiled(x), function(own))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(function(own), own))


@pytest.mark.parametrize("dtype", [torch.complex32, torch.float8_e5m2fnuz, torch.float8_e8m0fnu], ids=str)
def test_dtypes_that_jax_lacks(dtype: torch.dtype) -> None:
    assert f"[TL302] dtype is not supported: {dtype} of an input" in refused(
        lambda x: x.clone(), torch.zeros(2).to(dtype)
    )


def test_dtype_inside() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float8_e4m3fnuz).to(torch.float32)

    inline(
        refused(function, torch.zeros(2)),
        """\
[TL302] dtype is not supported: torch.float8_e4m3fnuz of aten._to_copy.default
  at   FILE:LINE in function: return x.to(torch.float8_e4m3fnuz).to(torch.float32)
  why  expected one of torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128, got torch.float8_e4m3fnuz
  fix  convert it in eager, before the compiled function, to a dtype that JAX has too""",
    )


def sized_by_nonzero(x: torch.Tensor) -> torch.Tensor:
    return torch.nonzero(x) + 1


def sized_by_mask(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0] + 1


def sized_by_item(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.sum().item()) + 1


@pytest.fixture
def sizes_from_data() -> Iterator[None]:
    """Dynamo takes such operators into the graph, instead of breaking it there."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield


def test_sized_by_nonzero(sizes_from_data: None) -> None:
    inline(
        refused(sized_by_nonzero, torch.tensor([1, 0, 2])),
        """\
[TL303] shape depends on data: aten.nonzero.default
  at   FILE:LINE in sized_by_nonzero: return torch.nonzero(x) + 1
  why  expected every shape to follow from the shapes of the inputs, got one that depends on values
  fix  use a form with a fixed shape (a mask, topk with a fixed k, torch.where with three arguments), compile without fullgraph=True so that the graph breaks here, or run it in eager torch between two programs with options={'fallback': 'eager'}""",
    )


@pytest.mark.parametrize("function", [sized_by_nonzero, sized_by_mask, sized_by_item])
def test_shape_that_depends_on_data_runs_in_eager_by_option(
    function: Callable[..., Any], sizes_from_data: None
) -> None:
    """With ``fullgraph=True`` too; the parts around it are compiled."""
    torch._dynamo.reset()
    run = torch.compile(function, backend="helion_tpu", fullgraph=True, options={"fallback": "eager"})
    for values in ([1, 0, 2], [0, 1, 3, 2]):
        x = torch.tensor(values)
        assert torch.equal(run(x), function(x))


# Random numbers ---------------------------------------------------------------------------------------


def test_a_generator_in_a_graph() -> None:
    generator = torch.Generator()
    graph = make_fx(lambda x: (torch.bernoulli(x, generator=generator),), tracing_mode="fake")(torch.ones(2))
    inline(
        says(lambda: helion_tpu(graph, [torch.ones(2)])),
        """\
[TL321] random values from a generator of the user's own: aten.bernoulli.default
  why  expected values from torch's own generator, got a torch.Generator
  fix  leave generator= out and seed with torch.manual_seed, or draw in eager and pass the values in""",
    )
