"""Mistakes in how the operators of kernels are declared."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from expecttest import assert_expected_inline as inline

from tests.refusals.remedies import (
    DOUBLE,
    Result,
    X,
    compiled,
    double,
    double_into,
    double_of_torch,
    gradient,
    into,
    mistake,
    refused,
    says,
)
from tpu_lowering import kernel_op, register_kernel


# Declarations -----------------------------------------------------------------------------------------
@mistake
def a_decorator_without_parentheses() -> Result:
    inline(
        says(lambda: kernel_op(double)),
        """\
[TL208] kernel signature cannot be registered: kernel_op
  at   FILE:LINE in double
  why  expected the operator's name, got the function double
  fix  write @kernel_op('my_ops::double') above the function""",
    )  # type: ignore[arg-type]
    return kernel_op("remedies::double")(double)(X), DOUBLE


@mistake
def a_name_without_a_namespace() -> Result:
    inline(
        says(lambda: kernel_op("double")(double)),
        """\
[TL208] kernel signature cannot be registered: 'double'
  at   FILE:LINE in double
  why  expected 'namespace::name', got 'double'
  fix  write kernel_op('my_ops::double', ...)""",
    )
    return kernel_op("my_ops::double")(double)(X), DOUBLE


@mistake
def a_name_that_a_namespace_has_itself() -> Result:
    inline(
        says(lambda: kernel_op("remedies::name")(double)),
        """\
[TL208] kernel signature cannot be registered: remedies::name
  at   FILE:LINE in double
  why  expected a name that torch.ops.remedies does not have itself, got 'name'
  fix  choose another name""",
    )
    return kernel_op("remedies::another_name")(double)(X), DOUBLE


@mistake
def no_annotations() -> Result:
    def untyped(x, out):  # type: ignore[no-untyped-def]
        return x * 2

    def typed(x: torch.Tensor, out: torch.Tensor) -> None:
        return x * 2  # type: ignore[return-value]

    inline(
        says(lambda: kernel_op("remedies::annotated", mutates_args=("out",))(untyped)),
        """\
[TL208] kernel signature cannot be registered: remedies::annotated
  at   FILE:LINE in untyped
  why  expected annotations that torch can turn into a schema, got Parameter x must have a type annotation.
  fix  annotate every parameter and the return value as for torch.library.custom_op: torch.Tensor, int, float, bool, str, torch.dtype, torch.device, lists and Optionals of them""",
    )
    return into(kernel_op("remedies::annotated", mutates_args=("out",))(typed))(X), DOUBLE


@mistake
def annotations_of_numpy() -> Result:
    def of_numpy(x: np.ndarray) -> np.ndarray:
        return x * 2

    def of_torch(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    inline(
        says(lambda: kernel_op("remedies::of_numpy")(of_numpy)),
        """\
[TL208] kernel signature cannot be registered: remedies::of_numpy
  at   FILE:LINE in of_numpy
  why  expected annotations that torch can turn into a schema, got Parameter x has unsupported type np.ndarray.
  fix  annotate every parameter and the return value as for torch.library.custom_op: torch.Tensor, int, float, bool, str, torch.dtype, torch.device, lists and Optionals of them""",
    )
    return kernel_op("remedies::of_numpy")(of_torch)(X), DOUBLE


@mistake
def a_text_for_names_of_arguments() -> Result:
    inline(
        says(lambda: kernel_op("remedies::names", mutates_args="out")(double_into)),
        """\
[TL208] kernel signature cannot be registered: remedies::names
  why  expected mutates_args as a tuple of names, got 'out'
  fix  write mutates_args=('out',)""",
    )
    return into(kernel_op("remedies::names", mutates_args=("out",))(double_into))(X), DOUBLE


@mistake
def a_written_argument_that_is_misspelt() -> Result:
    inline(
        says(lambda: kernel_op("remedies::written", mutates_args=("ot",))(double_into)),
        """\
[TL208] kernel signature cannot be registered: remedies::written
  at   FILE:LINE in double_into
  why  expected mutates_args among the arguments x, out, got 'ot'
  fix  write mutates_args=('out',)""",
    )
    return into(kernel_op("remedies::written", mutates_args=("out",))(double_into))(X), DOUBLE


@mistake
def a_backward_that_is_called() -> Result:
    inline(
        says(lambda: kernel_op("remedies::called", backward=X * 2)(double)),
        """\
[TL208] kernel signature cannot be registered: remedies::called
  why  expected backward as a function, got a Tensor of torch.float32 [16]
  fix  pass a function as backward""",
    )  # type: ignore[arg-type]
    operator = kernel_op("remedies::called", backward=lambda ctx, grad: grad * 2)(double)
    return gradient(compiled(lambda x: operator(x))), torch.full_like(X, 2)


@mistake
def a_sharding_without_an_arrow() -> Result:
    inline(
        says(lambda: kernel_op("remedies::sharded", sharding="rows, rows")(double)),
        """\
[TL715] sharding rule that does not fit a kernel: sharding of remedies::sharded
  at   FILE:LINE in double
  why  expected a text such as 'i j, j k -> i k', got 'rows, rows'
  fix  write a term for each tensor argument, '->', and one for each value that the function returns; a term has a name for each dimension, or _ for one that must be whole""",
    )
    return kernel_op("remedies::sharded", sharding="rows -> rows")(double)(X), DOUBLE


@mistake
def a_name_that_torch_has() -> Result:
    taken = double_of_torch("remedies::taken")
    inline(
        says(lambda: kernel_op("remedies::taken")(double)),
        """\
[TL207] kernel registered twice: remedies::taken
  at   FILE:LINE in double
  why  expected a new operator name, got one that torch knows already
  fix  choose another name, or give the existing operator a kernel with @register_kernel""",
    )
    register_kernel(torch.ops.remedies.taken)(double)
    return compiled(lambda x: taken(x))(X), DOUBLE


@mistake
def one_name_for_the_kernels_of_a_loop() -> Result:
    def multiply(name: str, by: int) -> Any:
        @kernel_op(f"remedies::{name}")
        def multiplied(x: torch.Tensor) -> torch.Tensor:
            return x * by

        return multiplied

    multiply("times", 3)
    inline(
        says(lambda: multiply("times", 2)),
        """\
[TL207] kernel registered twice: remedies::times
  at   FILE:LINE in multiplied
  why  expected a new operator name, got that of the kernel at FILE:LINE in multiplied
  fix  choose another name, or give each kernel that is made here one of its own""",
    )
    return multiply("times_2", 2)(X), DOUBLE


@mistake
def a_second_implementation() -> Result:
    twice = double_of_torch("remedies::twice")
    register_kernel(torch.ops.remedies.twice)(double)
    inline(
        says(lambda: register_kernel(torch.ops.remedies.twice)(lambda x: x + x)),
        """\
[TL207] kernel registered twice: remedies.twice.default
  at   FILE:LINE in <lambda>
  why  expected one implementation, got a second; the first is at FILE:LINE in double
  fix  remove one of the two, or register it for another overload""",
    )
    return compiled(lambda x: twice(x))(X), DOUBLE


@mistake
def an_implementation_of_a_name() -> Result:
    by_name = double_of_torch("remedies::by_name")
    inline(
        says(lambda: register_kernel("remedies::by_name")),
        """\
[TL208] kernel signature cannot be registered: register_kernel
  why  expected an operator of torch, got 'remedies::by_name'
  fix  write @register_kernel(torch.ops.remedies.by_name) above the function""",
    )
    register_kernel(torch.ops.remedies.by_name)(double)
    return compiled(lambda x: by_name(x))(X), DOUBLE


@mistake
def an_implementation_with_other_arguments() -> Result:
    @torch.library.custom_op("remedies::scaled", mutates_args=())
    def scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
        return x * scale

    scaled.register_fake(lambda x, scale: torch.empty_like(x))
    inline(
        says(lambda: register_kernel(torch.ops.remedies.scaled)(lambda x: x * 2)),
        """\
[TL208] kernel signature cannot be registered: remedies.scaled.default
  at   FILE:LINE in <lambda>
  why  expected a function that takes the arguments of remedies::scaled(Tensor x, float scale) -> Tensor, got too many positional arguments
  fix  give the function the operator's arguments in schema order""",
    )
    register_kernel(torch.ops.remedies.scaled)(lambda x, scale: x * scale)
    return compiled(lambda x: scaled(x, 2.0))(X), DOUBLE


@mistake
def an_operator_without_an_implementation() -> Result:
    @torch.library.custom_op("remedies::foreign", mutates_args=())
    def foreign(x: torch.Tensor) -> torch.Tensor:
        return x.cos()

    foreign.register_fake(torch.empty_like)

    def function(x: torch.Tensor) -> torch.Tensor:
        return foreign(x * 2)

    inline(
        refused(function, X),
        """\
[TL201] operator has no JAX implementation: remedies.foreign.default
  at   FILE:LINE in function: return foreign(x * 2)
  why  expected a JAX function registered for torch.ops.remedies.foreign.default, got none
  fix  decorate one with @tpu_lowering.register_kernel(torch.ops.remedies.foreign.default), or run it in eager torch, with options={"fallback": "eager"}""",
    )
    register_kernel(torch.ops.remedies.foreign.default)(jnp.cos)
    return compiled(function)(X), (X * 2).cos()


@mistake
def a_writing_operator_without_an_implementation() -> Result:
    @torch.library.custom_op("remedies::foreign_into", mutates_args=("out",))
    def foreign_into(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x)

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        foreign_into(x * 2, out)
        return out + 1

    inline(
        refused(function, X),
        """\
[TL201] operator has no JAX implementation: remedies.foreign_into.default
  at   FILE:LINE in function: foreign_into(x * 2, out)
  why  expected a JAX function registered for torch.ops.remedies.foreign_into.default, got none
  fix  decorate one with @tpu_lowering.register_kernel(torch.ops.remedies.foreign_into.default), or run it in eager torch, with options={"fallback": "eager"}""",
    )
    return compiled(function, fallback="eager")(X), X * 2 + 1
