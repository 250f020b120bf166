"""Refusals, word for word: each says where, what was expected, what came instead, and what to do.

A refusal loses nothing: arguments are as they were, and the next compilation works.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import helion
import helion.language as hl
import jax
import jax.numpy as jnp
import pytest
import torch
from expecttest import assert_expected_inline as inline
from jax.experimental import pallas as pl
from torch.fx.experimental.proxy_tensor import make_fx

import tpu_lowering
from tpu_lowering import TpuLoweringError, kernel_op, register_kernel
from tpu_lowering.backend import helion_tpu
from tpu_lowering.lower.table import TABLE
from tpu_lowering.options import Options


def text(error: BaseException) -> str:
    """An error's text with this file's lines and folder left out."""
    return re.sub(r"[^ ]*test_refusals\.py:\d+", "FILE:LINE", str(error))


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """What compiling a function says; checks that nothing else happened."""
    before = [
        value.clone() if isinstance(value, torch.Tensor) and value.device.type == "cpu" else None for value in arguments
    ]
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)(*arguments)
    error = caught.value.inner_exception
    assert isinstance(error, TpuLoweringError), error
    for value, old in zip(arguments, before, strict=True):
        assert old is None or torch.equal(value.view(torch.uint8), old.view(torch.uint8))
    x = torch.ones(5)
    assert torch.equal(torch.compile(lambda x: x + 1, backend="helion_tpu")(x), x + 1)
    return text(error)


def raised(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(TpuLoweringError) as caught:
        function(*arguments)
    return text(caught.value)


# Options ----------------------------------------------------------------------------------------------
def test_unknown_option() -> None:
    inline(
        refused(lambda x: x + 1, torch.ones(2), verfy=True),
        """\
[TL101] unknown option: 'verfy'
  why  expected one of verify, poison, passes, fallback, cpu_kernels, random, fuse, tune, tune_seconds, dump, cache, cache_bytes, buckets, device, mesh, shardings, got 'verfy'
  fix  did you mean 'verify'? Write options={'verify': ...}""",
    )


def test_wrong_option_value() -> None:
    inline(
        refused(lambda x: x + 1, torch.ones(2), verify=1),
        """\
[TL102] option has the wrong type or value: 'verify'
  why  expected a bool, got 1
  fix  pass a bool as options['verify']""",
    )
    inline(
        refused(lambda x: x + 1, torch.ones(2), fallback="cuda"),
        """\
[TL102] option has the wrong type or value: 'fallback'
  why  expected one of 'error', 'eager', got 'cuda'
  fix  pass one of 'error', 'eager' as options['fallback']""",
    )
    inline(
        refused(lambda x: x + 1, torch.ones(2), tune=1),
        """\
[TL102] option has the wrong type or value: 'tune'
  why  expected one of False, True, 'configs', got 1
  fix  pass one of False, True, 'configs' as options['tune']""",
    )


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
@torch.library.custom_op("refusals::foreign", mutates_args=())
def foreign(x: torch.Tensor) -> torch.Tensor:
    return x.cos()


foreign.register_fake(torch.empty_like)


@torch.library.custom_op("refusals::foreign_into", mutates_args=("out",))
def foreign_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x)


def test_operator_without_implementation() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return foreign(x * 2)

    inline(
        refused(function, torch.ones(2)),
        """\
[TL201] operator has no JAX implementation: refusals.foreign.default
  at   FILE:LINE in function: return foreign(x * 2)
  why  expected a JAX function registered for torch.ops.refusals.foreign.default, got none
  fix  decorate one with @tpu_lowering.register_kernel(torch.ops.refusals.foreign.default), or run it in eager torch, with options={"fallback": "eager"}""",
    )


def test_mutating_operator_without_implementation() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        foreign_into(x * 2, x)
        return x

    inline(
        refused(function, torch.ones(2)),
        """\
[TL201] operator has no JAX implementation: refusals.foreign_into.default
  at   FILE:LINE in function: foreign_into(x * 2, x)
  why  expected a JAX function registered for torch.ops.refusals.foreign_into.default, got none
  fix  decorate one with @tpu_lowering.register_kernel(torch.ops.refusals.foreign_into.default), or run it in eager torch, with options={"fallback": "eager"}""",
    )


@kernel_op("refusals::wrong_shape", mutates_args=("out",))
def wrong_shape(x: torch.Tensor, out: torch.Tensor) -> None:
    return x.sum()


@kernel_op("refusals::wrong_dtype", mutates_args=("out",))
def wrong_dtype(x: torch.Tensor, out: torch.Tensor) -> None:
    return x.astype(jnp.bfloat16)


@kernel_op("refusals::wrong_count", mutates_args=("out",))
def wrong_count(x: torch.Tensor, out: torch.Tensor) -> None:
    return x, x


@kernel_op("refusals::own_result", fake=lambda x: x.new_empty(3))
def own_result(x: torch.Tensor) -> torch.Tensor:
    return x * 2


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


@kernel_op("refusals::stores_into_input", mutates_args=("out",))
def stores_into_input(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = x[...]
        x[...] = x[...] + 1

    return _call(body, {1: 0})(x, out)


@kernel_op("refusals::untraceable", mutates_args=("out",))
def untraceable(x: torch.Tensor, out: torch.Tensor) -> None:
    return x if x.sum() > 0 else out


@kernel_op("refusals::without_backward", mutates_args=("out",))
def without_backward(x: torch.Tensor, out: torch.Tensor) -> None:
    return x * 2


def into(kernel: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernel(x, out)
        return out

    return function


def refused_in_eager_too(kernel: Any) -> str:
    """What a wrong kernel's refusal says, the same in eager and compiled."""
    found = refused(into(kernel), torch.ones(2))
    assert raised(into(kernel), torch.ones(2)) == found
    return found


def test_wrong_shape() -> None:
    inline(
        refused_in_eager_too(wrong_shape),
        """\
[TL202] kernel result has the wrong shape or dtype: new value of 'out' of refusals::wrong_shape
  at   FILE:LINE in wrong_shape
  why  expected f32[2], got f32[()]
  fix  return a value of type f32[2]""",
    )


def test_wrong_dtype() -> None:
    inline(
        refused_in_eager_too(wrong_dtype),
        """\
[TL202] kernel result has the wrong shape or dtype: new value of 'out' of refusals::wrong_dtype
  at   FILE:LINE in wrong_dtype
  why  expected f32[2], got bf16[2]
  fix  return a value of type f32[2]""",
    )


def test_wrong_count() -> None:
    inline(
        refused_in_eager_too(wrong_count),
        """\
[TL202] kernel result has the wrong shape or dtype: refusals::wrong_count
  at   FILE:LINE in wrong_count
  why  expected 1 results (new values of out, then 0 of its own), got 2
  fix  return the new values of the mutated arguments in schema order, then the operator's own results""",
    )


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


def test_stores_into_input() -> None:
    inline(
        refused_in_eager_too(stores_into_input),
        """\
[TL204] write that was never declared: argument 'x' of refusals::stores_into_input
  at   FILE:LINE in stores_into_input
  why  expected a kernel body that stores only into outputs, got a store into a read-only reference
  fix  name the argument in mutates_args and alias it with input_output_aliases, or do not store to it""",
    )


def test_untraceable() -> None:
    inline(
        refused_in_eager_too(untraceable),
        """\
[TL206] kernel cannot be traced to JAX: refusals::untraceable
  at   FILE:LINE in untraceable
  why  expected a function that JAX can trace, got TracerBoolConversionError: Attempted boolean conversion of traced array with shape bool[].
  fix  make the function traceable by jax.jit for these argument shapes""",
    )


def test_wrong_own_result() -> None:
    inline(
        refused(lambda x: own_result(x), torch.ones(2)),
        """\
[TL202] kernel result has the wrong shape or dtype: result 0 of refusals::own_result
  at   FILE:LINE in own_result
  why  expected f32[3], got f32[2]
  fix  return a value of type f32[3]""",
    )


def test_kernel_without_backward() -> None:
    inline(
        refused(into(without_backward), torch.ones(2, requires_grad=True)),
        """\
[TL205] kernel has no backward and a gradient is needed: refusals::without_backward
  at   FILE:LINE in function: kernel(x, out)
  why  expected a backward, because argument 'x' requires a gradient, got none
  fix  register one with kernel_op(..., backward=...), call the kernel on x.detach(), or use torch.no_grad()""",
    )


@helion.kernel(static_shapes=True, backend="pallas", autotune_effort="none")
def helion_double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] * 2


def test_helion_kernel_without_backward() -> None:
    inline(
        refused(into(helion_double_into), torch.ones(2, requires_grad=True)),
        """\
[TL205] kernel has no backward and a gradient is needed: helion_double_into
  at   FILE:LINE in function: kernel(x, out)
  why  expected a backward, because argument 'x' requires a gradient, got none
  fix  register one with kernel_op(..., backward=...), call the kernel on x.detach(), or use torch.no_grad()""",
    )


@helion.kernel(static_shapes=True, backend="triton", autotune_effort="none")
def helion_triton_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] * 2


def test_helion_kernel_of_another_backend() -> None:
    inline(
        refused(into(helion_triton_into), torch.ones(2)),
        """\
[TL210] Helion kernel lacks something that tpu_lowering needs: helion_triton_into
  at   FILE:LINE in function: kernel(x, out)
  why  expected a kernel of Helion's Pallas backend, got backend='triton'
  fix  write @helion.kernel(..., backend="pallas")""",
    )


def test_name_taken() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    inline(
        raised(kernel_op("refusals::own_result"), double),
        """\
[TL207] kernel registered twice: refusals::own_result
  at   FILE:LINE in double
  why  expected a new operator name, got one that torch knows already
  fix  choose another name, or give the existing operator a kernel with @register_kernel""",
    )


def test_second_implementation() -> None:
    inline(
        raised(register_kernel(torch.ops.refusals.own_result.default), lambda x: x),
        """\
[TL207] kernel registered twice: refusals.own_result.default
  at   FILE:LINE in <lambda>
  why  expected one implementation, got a second; the first is at FILE:LINE in own_result
  fix  remove one of the two, or register it for another overload""",
    )


def test_signatures() -> None:
    def untyped(x, out) -> None:  # type: ignore[no-untyped-def]
        return x

    inline(
        raised(kernel_op("refusals::untyped", mutates_args=("out",)), untyped),
        """\
[TL208] kernel signature cannot be registered: refusals::untyped
  at   FILE:LINE in untyped
  why  expected annotations that torch can turn into a schema, got infer_schema(func): Parameter x must have a type annotation. Got func with signature (x, out) -> 'None')
  fix  annotate every parameter and the return value as for torch.library.custom_op""",
    )
    inline(
        raised(kernel_op("no_namespace"), lambda x: x),
        """\
[TL208] kernel signature cannot be registered: 'no_namespace'
  at   FILE:LINE in <lambda>
  why  expected 'namespace::name', got 'no_namespace'
  fix  write kernel_op('my_ops::name', ...)""",
    )
    inline(
        raised(register_kernel(torch.ops.refusals.foreign_into.default), lambda x: x),
        """\
[TL208] kernel signature cannot be registered: refusals.foreign_into.default
  at   FILE:LINE in <lambda>
  why  expected a function that takes the arguments of refusals::foreign_into(Tensor x, Tensor(a1!) out) -> (), got too many positional arguments
  fix  give the function the operator's arguments in schema order""",
    )


# Operators and values ---------------------------------------------------------------------------------
def test_operator_without_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TABLE, torch.ops.aten.erfc.default)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfc(x) + 1

    inline(
        refused(function, torch.ones(2)),
        """\
[TL301] operator has no lowering: aten.erfc.default
  at   FILE:LINE in function: return torch.special.erfc(x) + 1
  why  expected an operator in the lowering table, got aten.erfc.default
  fix  run it in eager torch, between two programs, with options={'fallback': 'eager'}, or write it with other \
operators""",
    )


def test_operator_without_lowering_runs_in_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy of the above, with gradients and with a whole graph asked for; nothing else is cut off."""
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


def test_dtype_of_input() -> None:
    inline(
        refused(lambda x: x.clone(), torch.zeros(2).to(torch.float8_e4m3fnuz)),
        """\
[TL302] dtype is not supported: torch.float8_e4m3fnuz of an input
  why  expected one of torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128, got torch.float8_e4m3fnuz
  fix  convert it in eager, before the compiled function, to a dtype that JAX has too""",
    )


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


def test_sized_by_mask(sizes_from_data: None) -> None:
    inline(
        refused(sized_by_mask, torch.tensor([1, 0, 2])),
        """\
[TL303] shape depends on data: aten.index.Tensor
  at   FILE:LINE in sized_by_mask: return x[x > 0] + 1
  why  expected every shape to follow from the shapes of the inputs, got one that depends on values
  fix  use a form with a fixed shape (a mask, topk with a fixed k, torch.where with three arguments), compile without fullgraph=True so that the graph breaks here, or run it in eager torch between two programs with options={'fallback': 'eager'}""",
    )


def test_sized_by_item(sizes_from_data: None) -> None:
    inline(
        refused(sized_by_item, torch.tensor([1, 0, 2])),
        """\
[TL303] shape depends on data: aten._local_scalar_dense.default
  at   FILE:LINE in sized_by_item: return torch.zeros(x.sum().item()) + 1
  why  expected every shape to follow from the shapes of the inputs, got one that depends on values
  fix  use a form with a fixed shape (a mask, topk with a fixed k, torch.where with three arguments), compile without fullgraph=True so that the graph breaks here, or run it in eager torch between two programs with options={'fallback': 'eager'}""",
    )


def test_shape_that_depends_on_data_breaks_the_graph_without_fullgraph() -> None:
    x = torch.tensor([1, 0, 2])
    torch._dynamo.reset()
    assert torch.equal(torch.compile(sized_by_mask, backend="helion_tpu")(x), torch.tensor([2, 3]))


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


def test_mixed_devices() -> None:
    inline(
        refused(lambda x, y: (x + 1, y + 1), torch.ones(2), torch.ones(2, device="meta")),
        """\
[TL103] tensors on more than one device: cpu, meta
  why  expected all tensors on one device, got cpu and meta
  fix  move the model and its inputs to one device with .to(device)""",
    )
    inline(
        refused(lambda x: x + 1, torch.ones(2, device="meta")),
        """\
[TL104] device has no runtime: meta
  why  expected tensors on a device with a runtime (cpu, tpu, xla), got meta
  fix  move the model and its inputs to the CPU with .to('cpu')""",
    )


# Random numbers ---------------------------------------------------------------------------------------
def test_draws_that_depend_on_data_with_torch_s_values() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.poisson(x)

    inline(
        refused(function, torch.ones(2), random="torch"),
        """\
[TL320] random values depend on data, so eager's cannot be drawn before the program runs: aten.poisson.default
  at   FILE:LINE in function: return torch.poisson(x)
  why  expected a draw that depends on shapes and numbers alone, got one that depends on a tensor's values
  fix  compile with options={"random": "jax"}, or run it in eager, before the compiled function""",
    )


def test_a_generator_in_a_graph() -> None:
    generator = torch.Generator()
    graph = make_fx(lambda x: (torch.bernoulli(x, generator=generator),), tracing_mode="fake")(torch.ones(2))
    inline(
        raised(helion_tpu, graph, [torch.ones(2)]),
        """\
[TL321] random values from a generator of the user's own: aten.bernoulli.default
  why  expected values from torch's own generator, got a torch.Generator
  fix  leave generator= out and seed with torch.manual_seed, or draw in eager and pass the values in""",
    )


def test_jagged_nested_tensor() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    torch._dynamo.reset()
    with pytest.raises(TpuLoweringError) as caught:
        torch.compile(lambda x: (x * 2).sum(), backend="helion_tpu")(nested)
    inline(
        text(caught.value),
        """\
[TL309] jagged nested tensor: an argument of torch.jagged layout
  why  expected tensors whose sizes are numbers, got a nested tensor, whose rows have lengths of their own
  fix  pass x.values() and x.offsets(), or x.to_padded_tensor(0.0) and a mask""",
    )
