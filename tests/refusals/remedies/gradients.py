"""Mistakes with gradients of kernels, and with Helion's kernels."""

from __future__ import annotations

from typing import Any

import helion
import helion.language as hl
import torch
from expecttest import assert_expected_inline as inline

from tests.refusals.remedies import (
    DOUBLE,
    Result,
    X,
    compiled,
    double,
    double_of_torch,
    doubling,
    gradient,
    into,
    mistake,
    refused,
    says,
)
from tpu_lowering import kernel_op, register_kernel


# Gradients --------------------------------------------------------------------------------------------
@mistake
def a_gradient_of_a_kernel_without_backward() -> Result:
    without = kernel_op("remedies::without_backward")(doubling())
    inline(
        says(lambda: gradient(compiled(lambda x: without(x)))),
        """\
[TL205] kernel has no backward and a gradient is needed: remedies::without_backward
  at   FILE:LINE in <lambda>: says(lambda: gradient(compiled(lambda x: without(x)))),
  why  expected a backward, because argument 'x' requires a gradient, got none
  fix  register one with kernel_op(..., backward=...), call the kernel on x.detach(), or use torch.no_grad()""",
    )
    with_backward = kernel_op("remedies::with_backward", backward=lambda ctx, grad: grad * 2)(doubling())
    return gradient(compiled(lambda x: with_backward(x))), torch.full_like(X, 2)


@mistake
def a_gradient_in_eager_of_a_kernel_without_backward() -> Result:
    operator = kernel_op("remedies::no_gradient")(doubling())
    inline(
        says(lambda: gradient(operator)),
        """\
[TL205] kernel has no backward and a gradient is needed: remedies::no_gradient
  at   FILE:LINE in doubled
  why  expected a backward, because argument 'x' requires a gradient, got none
  fix  register one with kernel_op(..., backward=...), call the kernel on x.detach(), or use torch.no_grad()""",
    )
    return gradient(lambda x: operator(x.detach()) + x), torch.ones_like(X)


@mistake
def a_gradient_of_a_registered_operator() -> Result:
    doubled_operator = double_of_torch("remedies::doubled_operator")
    register_kernel(torch.ops.remedies.doubled_operator)(double)
    inline(
        says(lambda: gradient(compiled(lambda x: doubled_operator(x)))),
        """\
[TL205] kernel has no backward and a gradient is needed: remedies::doubled_operator
  why  expected a backward, because a gradient of its result is needed, got none
  fix  register one with torch.library.register_autograd('remedies::doubled_operator', ...), call the kernel on x.detach(), or use torch.no_grad()""",
    )
    torch.library.register_autograd("remedies::doubled_operator", lambda ctx, grad: grad * 2)
    return gradient(compiled(lambda x: doubled_operator(x))), torch.full_like(X, 2)


# Helion -----------------------------------------------------------------------------------------------
@helion.kernel(config=helion.Config(block_sizes=[8]), static_shapes=True, backend="pallas")
def helion_double(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * 2


@helion.kernel(config=helion.Config(block_sizes=[8]), static_shapes=True, backend="triton")
def helion_triton(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * 2


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return into(helion_double)(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


@mistake
def a_gradient_of_a_helion_kernel() -> Result:
    inline(
        says(lambda: gradient(compiled(into(helion_double)))),
        """\
[TL205] kernel has no backward and a gradient is needed: helion_double
  at   FILE:LINE in function: kernel(x, out)
  why  expected a backward, because argument 'x' requires a gradient, got none
  fix  call it in the forward of a torch.autograd.Function whose backward is its formula, call the kernel on x.detach(), or use torch.no_grad()""",
    )
    return gradient(compiled(lambda x: Doubled.apply(x))), torch.full_like(X, 2)


@mistake
def a_helion_kernel_for_triton() -> Result:
    inline(
        refused(into(helion_triton), X),
        """\
[TL210] Helion kernel lacks something that tpu_lowering needs: helion_triton
  at   FILE:LINE in function: kernel(x, out)
  why  expected a kernel of Helion's Pallas backend, got backend='triton'
  fix  write @helion.kernel(..., backend="pallas")""",
    )
    return compiled(into(helion_double))(X), DOUBLE


@mistake
def a_helion_kernel_with_too_few_arguments() -> Result:
    inline(
        says(lambda: compiled(lambda x: helion_double(x))(X)),
        """\
[TL217] kernel called with other arguments than it takes: helion_double
  at   FILE:LINE in <lambda>: says(lambda: compiled(lambda x: helion_double(x))(X)),
  why  expected a call of helion_double(x: 'torch.Tensor', out: 'torch.Tensor') -> 'None', got missing a required argument: 'out'
  fix  pass each argument of the kernel once""",
    )
    return compiled(into(helion_double))(X), DOUBLE


@mistake
def a_helion_kernel_with_a_number_for_a_tensor() -> Result:
    inline(
        says(lambda: compiled(lambda x: helion_double(x, 3))(X)),
        """\
[TL206] kernel cannot be traced to JAX: helion_double
  at   FILE:LINE in helion_double: out[tile] = x[tile] * 2
  why  expected a kernel that Helion's Pallas backend compiles, got TypeInferenceError: Subscript assignment not supported with self=SymIntType(u0) key=TileIndexType(0) value=TensorType([block_size_0], torch.float32)
  fix  see Helion's message above; change the kernel, or its config, for these argument shapes""",
    )
    return compiled(into(helion_double))(X), DOUBLE
