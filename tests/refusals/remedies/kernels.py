"""Mistakes in what kernels return, compute and write."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from expecttest import assert_expected_inline as inline
from jax.experimental import pallas as pl

from tests.refusals.remedies import (
    DOUBLE,
    Result,
    X,
    compiled,
    double_into,
    doubling,
    in_eager_and_compiled,
    into,
    mistake,
    refused,
)
from tpu_lowering import kernel_op, register_kernel


# Results ----------------------------------------------------------------------------------------------
@mistake
def a_result_of_another_shape() -> Result:
    @kernel_op("remedies::other_shape", mutates_args=("out",))
    def other_shape(x: torch.Tensor, out: torch.Tensor) -> None:
        return x.sum()  # type: ignore[return-value]

    @kernel_op("remedies::its_shape", mutates_args=("out",))
    def its_shape(x: torch.Tensor, out: torch.Tensor) -> None:
        return jnp.broadcast_to(x.sum(), (16,))  # type: ignore[return-value]

    inline(
        in_eager_and_compiled(other_shape),
        """\
[TL202] kernel result has the wrong shape or dtype: new value of 'out' of remedies::other_shape
  at   FILE:LINE in other_shape
  why  expected f32[16], got f32[()]
  fix  return a value of type f32[16]""",
    )
    return compiled(into(its_shape))(X), X.sum().expand(16)


@mistake
def a_result_of_another_dtype() -> Result:
    @kernel_op("remedies::other_dtype", mutates_args=("out",))
    def other_dtype(x: torch.Tensor, out: torch.Tensor) -> None:
        return (x * 2).astype(jnp.bfloat16)  # type: ignore[attr-defined]

    @kernel_op("remedies::its_dtype", mutates_args=("out",))
    def its_dtype(x: torch.Tensor, out: torch.Tensor) -> None:
        return (x * 2).astype(jnp.float32)  # type: ignore[attr-defined]

    inline(
        in_eager_and_compiled(other_dtype),
        """\
[TL202] kernel result has the wrong shape or dtype: new value of 'out' of remedies::other_dtype
  at   FILE:LINE in other_dtype
  why  expected f32[16], got bf16[16]
  fix  return a value of type f32[16]""",
    )
    return compiled(into(its_dtype))(X), DOUBLE


@mistake
def too_many_results() -> Result:
    @kernel_op("remedies::two_values", mutates_args=("out",))
    def two_values(x: torch.Tensor, out: torch.Tensor) -> None:
        return x * 2, x  # type: ignore[return-value]

    one_value = kernel_op("remedies::one_value", mutates_args=("out",))(double_into)
    inline(
        in_eager_and_compiled(two_values),
        """\
[TL202] kernel result has the wrong shape or dtype: remedies::two_values
  at   FILE:LINE in two_values
  why  expected 1 result (new values of out, then 0 of its own), got 2
  fix  return the new values of the mutated arguments in schema order, then the operator's own results""",
    )
    return compiled(into(one_value))(X), DOUBLE


@mistake
def a_new_value_that_is_not_returned() -> Result:
    @kernel_op("remedies::stored", mutates_args=("out",))
    def stored(x: torch.Tensor, out: torch.Tensor) -> None:
        x * 2

    returned = kernel_op("remedies::returned", mutates_args=("out",))(double_into)
    inline(
        in_eager_and_compiled(stored),
        """\
[TL202] kernel result has the wrong shape or dtype: remedies::stored
  at   FILE:LINE in stored
  why  expected 1 result (new values of out, then 0 of its own), got 0
  fix  return the new values of the mutated arguments in schema order, then the operator's own results""",
    )
    return compiled(into(returned))(X), DOUBLE


@mistake
def a_store_into_an_array() -> Result:
    @kernel_op("remedies::in_place", mutates_args=("out",))
    def in_place(x: torch.Tensor, out: torch.Tensor) -> None:
        out[...] = x * 2

    @kernel_op("remedies::set", mutates_args=("out",))
    def set_(x: torch.Tensor, out: torch.Tensor) -> None:
        return out.at[...].set(x * 2)  # type: ignore[attr-defined]

    inline(
        in_eager_and_compiled(in_place),
        """\
[TL206] kernel cannot be traced to JAX: remedies::in_place
  at   FILE:LINE in in_place: out[...] = x * 2
  why  expected a function that JAX can trace, got TypeError: JAX arrays are immutable and do not support in-place item assignment. Instead of x[idx] = y, use x = x.at[idx].set(y) or another .at[] method: https://docs.jax.dev/en/latest/_autosummary/jax.numpy.ndarray.at.html
  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and numpy, and jnp.where or jax.lax.cond in place of 'if'""",
    )
    return compiled(into(set_))(X), DOUBLE


@mistake
def a_type_that_says_something_else() -> Result:
    wrong = kernel_op("remedies::said_wrong", fake=lambda x: x.new_empty(3))(doubling())
    right = kernel_op("remedies::said_right", fake=torch.empty_like)(doubling())
    inline(
        refused(lambda x: wrong(x), X),
        """\
[TL202] kernel result has the wrong shape or dtype: result 0 of remedies::said_wrong
  at   FILE:LINE in doubled
  why  expected f32[3], got f32[16]
  fix  return a value of type f32[3], or mend fake=, which says so""",
    )
    return compiled(lambda x: right(x))(X), DOUBLE


# Tracing ----------------------------------------------------------------------------------------------
@mistake
def a_branch_on_values() -> Result:
    @kernel_op("remedies::branches", mutates_args=("out",))
    def branches(x: torch.Tensor, out: torch.Tensor) -> None:
        return x * 2 if x.sum() > 0 else -x  # type: ignore[return-value]

    @kernel_op("remedies::selects", mutates_args=("out",))
    def selects(x: torch.Tensor, out: torch.Tensor) -> None:
        return jnp.where(x.sum() > 0, x * 2, -x)  # type: ignore[return-value]

    inline(
        in_eager_and_compiled(branches),
        """\
[TL206] kernel cannot be traced to JAX: remedies::branches
  at   FILE:LINE in branches: return x * 2 if x.sum() > 0 else -x  # type: ignore[return-value]
  why  expected a function that JAX can trace, got TracerBoolConversionError: Attempted boolean conversion of traced array with shape bool[].
  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and numpy, and jnp.where or jax.lax.cond in place of 'if'""",
    )
    return compiled(into(selects))(X), -X


@mistake
def a_function_of_numpy() -> Result:
    @kernel_op("remedies::of_numpy_s", mutates_args=("out",))
    def of_numpys(x: torch.Tensor, out: torch.Tensor) -> None:
        return np.tanh(x)  # type: ignore[return-value]

    @kernel_op("remedies::of_jax", mutates_args=("out",))
    def of_jax(x: torch.Tensor, out: torch.Tensor) -> None:
        return jnp.tanh(x)  # type: ignore[return-value]

    inline(
        in_eager_and_compiled(of_numpys),
        """\
[TL206] kernel cannot be traced to JAX: remedies::of_numpy_s
  at   FILE:LINE in of_numpys: return np.tanh(x)  # type: ignore[return-value]
  why  expected a function that JAX can trace, got TracerArrayConversionError: The numpy.ndarray conversion method __array__() was called on traced array with shape float32[16]
  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and numpy, and jnp.where or jax.lax.cond in place of 'if'""",
    )
    return compiled(into(of_jax))(X), X.tanh()


@mistake
def a_function_of_torch() -> Result:
    @kernel_op("remedies::of_torch_s", mutates_args=("out",))
    def of_torchs(x: torch.Tensor, out: torch.Tensor) -> None:
        return torch.tanh(x)  # type: ignore[return-value]

    @kernel_op("remedies::of_jax_s", mutates_args=("out",))
    def of_jaxs(x: torch.Tensor, out: torch.Tensor) -> None:
        return jnp.tanh(x)  # type: ignore[return-value]

    inline(
        in_eager_and_compiled(of_torchs),
        """\
[TL206] kernel cannot be traced to JAX: remedies::of_torch_s
  at   FILE:LINE in of_torchs: return torch.tanh(x)  # type: ignore[return-value]
  why  expected a function that JAX can trace, got TypeError: tanh(): argument 'input' (position 1) must be Tensor, not DynamicJaxprTracer
  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and numpy, and jnp.where or jax.lax.cond in place of 'if'""",
    )
    return compiled(into(of_jaxs))(X), X.tanh()


@mistake
def a_result_of_torch() -> Result:
    @kernel_op("remedies::ones_of_torch", mutates_args=("out",))
    def ones_of_torch(x: torch.Tensor, out: torch.Tensor) -> None:
        return torch.ones(16)  # type: ignore[return-value]

    @kernel_op("remedies::ones_of_jax", mutates_args=("out",))
    def ones_of_jax(x: torch.Tensor, out: torch.Tensor) -> None:
        return jnp.ones(16, jnp.float32)  # type: ignore[return-value]

    inline(
        in_eager_and_compiled(ones_of_torch),
        """\
[TL202] kernel result has the wrong shape or dtype: remedies::ones_of_torch
  at   FILE:LINE in ones_of_torch
  why  expected arrays of JAX's as results, got a Tensor of torch.float32 [16]
  fix  compute them with jax.numpy""",
    )
    return compiled(into(ones_of_jax))(X), torch.ones(16)


@mistake
def a_line_that_raises() -> Result:
    @kernel_op("remedies::five_columns", mutates_args=("out",))
    def five_columns(x: torch.Tensor, out: torch.Tensor) -> None:
        rows = x.reshape(3, 5)
        return (rows * 2).reshape(16)  # type: ignore[return-value]

    @kernel_op("remedies::four_columns", mutates_args=("out",))
    def four_columns(x: torch.Tensor, out: torch.Tensor) -> None:
        rows = x.reshape(4, 4)
        return (rows * 2).reshape(16)  # type: ignore[return-value]

    inline(
        in_eager_and_compiled(five_columns),
        """\
[TL206] kernel cannot be traced to JAX: remedies::five_columns
  at   FILE:LINE in five_columns: rows = x.reshape(3, 5)
  why  expected a function that JAX can trace, got TypeError: cannot reshape array of shape (16,) (size 16) into shape (3, 5) (size 15)
  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and numpy, and jnp.where or jax.lax.cond in place of 'if'""",
    )
    return compiled(into(four_columns))(X), DOUBLE


# What is written --------------------------------------------------------------------------------------
def doubled_in_blocks(name: str, blocks: int) -> Any:
    def body(x: Any, out: Any) -> None:
        out[...] = x[...] * 2

    def run(x: torch.Tensor, out: torch.Tensor) -> None:
        block = pl.BlockSpec((4,), lambda i: (i,))
        shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
        return pl.pallas_call(body, grid=(blocks,), in_specs=[block], out_specs=block, out_shape=shape)(x)

    return kernel_op(f"remedies::{name}", mutates_args=("out",))(run)


@mistake
def a_grid_beyond_its_array() -> Result:
    inline(
        in_eager_and_compiled(doubled_in_blocks("five_blocks", 5)),
        """\
[TL215] kernel block outside its array: input 0 of remedies::five_blocks
  at   FILE:LINE in run
  why  expected blocks that begin inside their array, got block 4 of 4 elements (from element 16) in dimension 0, which has 16, at step (4,) of the grid
  fix  make the grid or the index map end with the array, or the array as large as the grid needs""",
    )
    return compiled(into(doubled_in_blocks("fitting_blocks", pl.cdiv(16, 4))))(X), DOUBLE


def adds_to_its_argument(name: str, mutates_args: tuple[str, ...], aliases: dict[int, int]) -> Any:
    def body(x: Any, *references: Any) -> None:
        references[-1][...] = x[...] * 2
        target = references[0] if aliases else x
        target[...] = x[...] + 1

    def run(x: torch.Tensor, out: torch.Tensor) -> None:
        one = jax.ShapeDtypeStruct(out.shape, out.dtype)
        shapes = (one,) * len(mutates_args)
        results = pl.pallas_call(body, out_shape=shapes, input_output_aliases=aliases)(x)
        return results if len(shapes) > 1 else results[0]

    return kernel_op(f"remedies::{name}", mutates_args=mutates_args)(run)


@mistake
def a_store_into_an_argument_that_is_only_read() -> Result:
    wrong = adds_to_its_argument("undeclared", ("out",), {})
    inline(
        in_eager_and_compiled(wrong),
        """\
[TL204] write that was never declared: argument 'x' of remedies::undeclared
  at   FILE:LINE in run
  why  expected a kernel body that stores only into outputs, got a store into a read-only reference
  fix  name the argument in mutates_args and alias it with input_output_aliases, or do not store to it""",
    )
    declared = adds_to_its_argument("declared", ("x", "out"), {0: 0})
    x = X.clone()
    return (compiled(into(declared))(x), x), (DOUBLE, X + 1)


@mistake
def operands_that_overlap() -> Result:
    @torch.library.custom_op("remedies::step", mutates_args=("a",))
    def step(a: torch.Tensor, b: torch.Tensor) -> None:
        a.add_(b)

    register_kernel(torch.ops.remedies.step)(lambda a, b: a + b)

    def overlapping(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        step(x[:8], x[1:9])
        return x

    def apart(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        step(x[:8], x[1:9].clone())
        return x

    inline(
        refused(overlapping, X),
        """\
[TL214] memory that a kernel writes overlaps: arguments 'a' and 'b' of remedies::step
  at   FILE:LINE in overlapping: step(x[:8], x[1:9])
  why  expected memory of its own for 'a', which is written, got elements that both have: what eager makes of them depends on the order in which the operator's own code touches them
  fix  pass a .clone() of one of them, and copy it back after the call if it is written""",
    )
    return compiled(apart)(X), apart(X)


@mistake
def an_expanded_tensor_that_is_written() -> Result:
    operator = kernel_op("remedies::fill", mutates_args=("out",))(double_into)

    def expanded(x: torch.Tensor) -> torch.Tensor:
        row = torch.empty(4).expand(4, 4)
        operator(x.view(4, 4), row)
        return row

    def cloned(x: torch.Tensor) -> torch.Tensor:
        row = torch.empty(4).expand(4, 4).clone()
        operator(x.view(4, 4), row)
        return row

    inline(
        refused(expanded, X),
        """\
[TL214] memory that a kernel writes overlaps: argument 'out' of remedies::fill
  at   FILE:LINE in expanded: operator(x.view(4, 4), row)
  why  expected one place in memory for each element that is written, got an expanded tensor, whose elements share places
  fix  write to a .clone() of it""",
    )
    return compiled(cloned)(X), DOUBLE.view(4, 4)
