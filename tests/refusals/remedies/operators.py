"""Mistakes in what a graph holds: operators, dtypes, sizes, random numbers, memory, gradients of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline as inline

from tests.refusals.remedies import Result, X, compiled, mistake, refused, says, text

SIZES = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}


@mistake
def an_operator_without_a_lowering() -> Result:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch._add_relu(x, x) + 1

    inline(
        refused(function, X),
        """\
[TL301] operator has no lowering: aten._add_relu.Tensor
  at   FILE:LINE in function: return torch._add_relu(x, x) + 1
  why  expected an operator in the lowering table, got aten._add_relu.Tensor
  fix  run it in eager torch, between two programs, with options={'fallback': 'eager'}, or write it with other operators""",
    )
    return compiled(function, fallback="eager")(X), function(X)


@mistake
def a_dtype_that_jax_has_not() -> Result:
    small = X.to(torch.float8_e4m3fnuz)
    inline(
        refused(lambda x: x.clone(), small),
        """\
[TL302] dtype is not supported: torch.float8_e4m3fnuz of an input
  why  expected one of torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128, got torch.float8_e4m3fnuz
  fix  convert it in eager, before the compiled function, to a dtype that JAX has too""",
    )
    return compiled(lambda x: x.clone())(small.to(torch.float32)), small.float()


@mistake
def a_size_that_depends_on_data() -> Result:
    def positive(x: torch.Tensor) -> torch.Tensor:
        return x[x > 0] + 1

    with torch._dynamo.config.patch(SIZES):
        inline(
            refused(positive, X),
            """\
[TL303] shape depends on data: aten.index.Tensor
  at   FILE:LINE in positive: return x[x > 0] + 1
  why  expected every shape to follow from the shapes of the inputs, got one that depends on values
  fix  use a form with a fixed shape (a mask, topk with a fixed k, torch.where with three arguments), compile without fullgraph=True so that the graph breaks here, or run it in eager torch between two programs with options={'fallback': 'eager'}""",
        )
        by_option = compiled(positive, fallback="eager")(X)
    torch.compiler.reset()
    broken = torch.compile(positive, backend="helion_tpu")(X)
    return [by_option, broken], [positive(X)] * 2


@mistake
def a_number_that_becomes_a_size() -> Result:
    def zeros(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.sum().item()) + 1

    def masked(x: torch.Tensor) -> torch.Tensor:
        return (torch.arange(8) < x.sum()).float()

    counts = torch.tensor([1, 0, 2])
    with torch._dynamo.config.patch(SIZES):
        inline(
            refused(zeros, counts),
            """\
[TL303] shape depends on data: aten._local_scalar_dense.default
  at   FILE:LINE in zeros: return torch.zeros(x.sum().item()) + 1
  why  expected every shape to follow from the shapes of the inputs, got one that depends on values
  fix  use a form with a fixed shape (a mask, topk with a fixed k, torch.where with three arguments), compile without fullgraph=True so that the graph breaks here, or run it in eager torch between two programs with options={'fallback': 'eager'}""",
        )
    return compiled(masked)(counts)[:3], zeros(counts)


@mistake
def a_view_beyond_its_base() -> Result:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.view(4, 4) + 1)[1:].as_strided((4,), (1,), 0)

    def sliced(x: torch.Tensor) -> torch.Tensor:
        return (x.view(4, 4) + 1)[0]

    inline(
        refused(function, X),
        """\
[TL304] strided view of memory that is not dense: aten.as_strided.default
  at   FILE:LINE in function: return (x.view(4, 4) + 1)[1:].as_strided((4,), (1,), 0)
  why  expected a view of the elements of its base, which has shape (3, 4), strides (4, 1) and offset 4, got one of size [4], strides [1] and offset 0
  fix  take the view of x.contiguous(), or build it from slices and transposes instead of strides""",
    )
    return compiled(sliced)(X), function(X)


def noted(call: Any) -> str:
    """The note on an exception of eager's own."""
    with pytest.raises(Exception) as caught:
        call()
    (note,) = caught.value.__notes__
    return text(RuntimeError(note))


@mistake
def a_product_of_two_dtypes() -> Result:
    matrix = X.view(4, 4)
    inline(
        noted(lambda: compiled(lambda x, y: x @ y)(matrix, matrix.double())),
        """\
[TL305] eager refuses this call: aten.mm.default
  at   FILE:LINE in <lambda>: noted(lambda: compiled(lambda x, y: x @ y)(matrix, matrix.double())),
  why  expected arguments that eager takes, got float32[4, 4], float64[4, 4], for which it raises RuntimeError
  fix  convert them in the compiled function, with .to(dtype), to types that eager takes""",
    )
    return compiled(lambda x, y: x @ y.to(x.dtype))(matrix, matrix.double()), matrix @ matrix


@mistake
def a_softmax_of_integers() -> Result:
    numbers = torch.arange(4)
    inline(
        noted(lambda: compiled(lambda x: x.softmax(0))(numbers)),
        """\
[TL305] eager refuses this call: aten._softmax.default
  at   FILE:LINE in <lambda>: noted(lambda: compiled(lambda x: x.softmax(0))(numbers)),
  why  expected arguments that eager takes, got int64[4], for which it raises NotImplementedError
  fix  convert them in the compiled function, with .to(dtype), to types that eager takes""",
    )
    return compiled(lambda x: x.to(torch.float32).softmax(0))(numbers), numbers.float().softmax(0)


@mistake
def a_gradient_of_a_gradient() -> Result:
    x = torch.tensor(2.0, requires_grad=True)

    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    def second() -> torch.Tensor:
        return torch.autograd.grad(compiled(cube)(x), x, create_graph=True)[0]

    inline(
        says(second),
        """\
[TL306] gradient of a gradient: the backward of a compiled function
  why  expected create_graph=False, got a backward whose own gradient may be asked for: a compiled backward records none
  fix  call the function in eager torch where gradients of gradients are needed (hvp, gradient penalties), or use torch.func.grad inside of the compiled function""",
    )
    return compiled(torch.func.grad(torch.func.grad(cube)))(x.detach()), torch.tensor(12.0)


@mistake
def a_view_that_torch_cannot_rebuild() -> Result:
    def halves(x: torch.Tensor, k: int) -> torch.Tensor:
        return x[k:].view(torch.int16)

    def copied(x: torch.Tensor, k: int) -> torch.Tensor:
        return x[k:].view(torch.int16).clone()

    def dynamic(function: Any) -> Any:
        torch.compiler.reset()
        return torch.compile(function, backend="helion_tpu", dynamic=True)

    inline(
        says(lambda: dynamic(halves)(X, 1)),
        """\
[TL307] view of an argument that torch cannot rebuild: result detach
  at   FILE:LINE in halves: return x[k:].view(torch.int16)
  why  expected a view that torch can rebuild from its place in an argument, which depends on sizes here, got elements of 2 bytes of torch.float32
  fix  return a .clone() of it, or view the compiled function's result outside of it""",
    )
    return dynamic(copied)(X, 1), halves(X, 1)


@mistake
def memory_that_is_exchanged_and_written() -> Result:
    def written_later(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x.data = t
        x.add_(1)
        return x * 2

    def computed_before(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x.data = t + 1
        return x * 2

    inline(
        says(lambda: compiled(written_later)(torch.ones(16), X.clone())),
        """\
[TL308] memory is changed in a way that no program can: an argument whose memory is exchanged (x.data = ..., x.set_(...), a storage's resize_)
  why  expected that to be all that is done to it, got another write to it in the same graph
  fix  compute the new tensor before it is set (x.data = t + 1), or do one of the two in eager torch, outside of the compiled function""",
    )
    return compiled(computed_before)(torch.ones(16), X.clone()), (X + 1) * 2


@mistake
def a_jagged_tensor() -> Result:
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sum()

    inline(
        says(lambda: compiled(doubled)(nested)),
        """\
[TL309] jagged nested tensor: an argument of torch.jagged layout
  why  expected tensors whose sizes are numbers, got a nested tensor, whose rows have lengths of their own
  fix  pass x.values() and x.offsets(), or x.to_padded_tensor(0.0) and a mask""",
    )
    return compiled(doubled)(nested.values()), torch.tensor(40.0)


@mistake
def eager_s_draws_that_depend_on_data() -> Result:
    rates = torch.zeros(16)  # draws of these are zeros
    inline(
        refused(torch.poisson, rates, random="torch"),
        """\
[TL320] random values depend on data, so eager's cannot be drawn before the program runs: aten.poisson.default
  why  expected a draw that depends on shapes and numbers alone, got one that depends on a tensor's values
  fix  compile with options={"random": "jax"}, or run it in eager, before the compiled function""",
    )
    return compiled(torch.poisson, random="jax")(rates), rates


@mistake
def draws_in_a_branch() -> Result:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + torch.rand_like(x), lambda x: x - 1, (x,))

    def quiet(x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand_like(x)
        return torch.cond(x.sum() > 0, lambda x, noise: x + noise, lambda x, noise: x - 1, (x, noise))

    inline(
        refused(noisy, X),
        """\
[TL322] random values inside control flow: aten.rand_like.default
  at   FILE:LINE in <lambda>: return torch.cond(x.sum() > 0, lambda x: x + torch.rand_like(x), lambda x: x - 1, (x,))
  why  expected true_graph_0 of control flow to draw no random values, got aten.rand_like.default
  fix  draw before torch.cond, while_loop, scan or map, and pass the values in""",
    )
    return compiled(quiet)(X), X - 1
