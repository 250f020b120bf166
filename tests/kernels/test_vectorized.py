"""Kernels as plain JAX: the same results as in Pallas's interpreter, and the schedule that was chosen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering.analyse import grids
from tpu_lowering.kernels import jaxprs, vectorized


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of one ``pallas_call``, its operands, and the axes of its grid expected to run at once."""

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    parallel: tuple[int, ...]


def numbers(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def calls(function: Callable[..., Any], operands: Sequence[Any]) -> tuple[Any, list[Any]]:
    closed = jax.make_jaxpr(function)(*operands)
    return closed, jaxprs.kernel_calls(closed)


def check(function: Callable[..., Any], operands: Sequence[Any]) -> None:
    """Vectorized and interpreted give equal results, undefined elements included."""
    closed, (call,) = calls(function, operands)
    assert vectorized.why_not(call) == ""
    got = jax.jit(lambda *given: jaxprs.run(closed, given, "vectorized"))(*operands)
    want = jax.jit(lambda *given: jaxprs.run(closed, given, "interpret"))(*operands)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-6, atol=1e-6)


def double(x_ref: Any, out_ref: Any) -> None:
    out_ref[...] = x_ref[...] * 2


def elementwise(x: jax.Array, grid: tuple[int, ...], block: Any, index_map: Any, out_map: Any = None) -> jax.Array:
    spec, out_spec = pl.BlockSpec(block, index_map), pl.BlockSpec(block, out_map or index_map)
    return pl.pallas_call(
        double, grid=grid, in_specs=[spec], out_specs=out_spec, out_shape=f32(*x.shape), interpret=True
    )(x)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Grid (i, j, k): the output block is revisited along k, accumulated in scratch."""

    def body(a_ref: Any, b_ref: Any, out_ref: Any, sum_ref: Any) -> None:
        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            sum_ref[...] = jnp.zeros_like(sum_ref)

        sum_ref[...] += a_ref[...] @ b_ref[...]

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _() -> None:
            out_ref[...] = sum_ref[...]

    return pl.pallas_call(
        body,
        grid=(a.shape[0] // 8, b.shape[1] // 8, a.shape[1] // 8),
        in_specs=[pl.BlockSpec((8, 8), lambda i, j, k: (i, k)), pl.BlockSpec((8, 8), lambda i, j, k: (k, j))],
        out_specs=pl.BlockSpec((8, 8), lambda i, j, k: (i, j)),
        out_shape=f32(a.shape[0], b.shape[1]),
        scratch_shapes=[pltpu.VMEM((8, 8), jnp.float32)],
        interpret=True,
    )(a, b)


def running_sum(x: jax.Array, reset: Callable[[], Any] = lambda: pl.program_id(1) == 0) -> jax.Array:
    """Grid (i, j): scratch carries the sum of the blocks since it was reset, by default along j."""

    def body(x_ref: Any, out_ref: Any, carry_ref: Any) -> None:
        @pl.when(reset())
        def _() -> None:
            carry_ref[...] = jnp.zeros_like(carry_ref)

        carry_ref[...] += x_ref[...]
        out_ref[...] = carry_ref[...]

    spec = pl.BlockSpec((8, 128), lambda i, j: (i, j))
    return pl.pallas_call(
        body,
        grid=(x.shape[0] // 8, x.shape[1] // 128),
        in_specs=[spec],
        out_specs=spec,
        out_shape=f32(*x.shape),
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32)],
        interpret=True,
    )(x)


def carried_over_rows(x: jax.Array) -> jax.Array:
    """Scratch is set in the very first step alone, so nothing runs at once."""
    return running_sum(x, lambda: (pl.program_id(0) == 0) & (pl.program_id(1) == 0))


def dynamic_slices(x: jax.Array) -> jax.Array:
    """Blocks taken by hand from a whole array: positions depend on the grid."""

    def body(x_ref: Any, out_ref: Any) -> None:
        row = pl.multiple_of(pl.program_id(0) * 8, 8)
        out_ref[...] = x_ref[pl.ds(row, 8), :] + 1

    return pl.pallas_call(
        body,
        grid=(x.shape[0] // 8,),
        in_specs=[pl.BlockSpec(x.shape, lambda i: (0, 0))],
        out_specs=pl.BlockSpec((8, x.shape[1]), lambda i: (i, 0)),
        out_shape=f32(*x.shape),
        interpret=True,
    )(x)


def prefetched(order: jax.Array, x: jax.Array) -> jax.Array:
    """Rows in an order that an operand gives: the block's position depends on data."""
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(x.shape[0],),
        in_specs=[pl.BlockSpec((pl.squeezed, x.shape[1]), lambda i, order: (order[i], 0))],
        out_specs=pl.BlockSpec((pl.squeezed, x.shape[1]), lambda i, order: (i, 0)),
    )

    def body(order_ref: Any, x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] + order_ref[pl.program_id(0)].astype(jnp.float32)

    return pl.pallas_call(body, grid_spec=spec, out_shape=f32(*x.shape), interpret=True)(order, x)


def scattered(order: jax.Array, x: jax.Array) -> jax.Array:
    """Writes rows to positions that an operand gives, some twice."""
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(x.shape[0],),
        in_specs=[pl.BlockSpec((1, x.shape[1]), lambda i, order: (i, 0))],
        out_specs=pl.BlockSpec((1, x.shape[1]), lambda i, order: (order[i], 0)),
    )

    def body(order_ref: Any, x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...]

    return pl.pallas_call(body, grid_spec=spec, out_shape=f32(*x.shape), interpret=True)(order, x)


def accumulated(x: jax.Array, out: jax.Array) -> jax.Array:
    """Adds rows to an aliased output whose one block is revisited."""

    def body(x_ref: Any, old_ref: Any, out_ref: Any) -> None:
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            out_ref[...] = old_ref[...]

        out_ref[...] += x_ref[...]

    one = pl.BlockSpec((8, 128), lambda i: (0, 0))
    return pl.pallas_call(
        body,
        grid=(x.shape[0] // 8,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0)), one],
        out_specs=one,
        out_shape=f32(8, 128),
        input_output_aliases={1: 0},
        interpret=True,
    )(x, out)


def as_many_steps_as_given(steps: jax.Array, x: jax.Array, out: jax.Array) -> jax.Array:
    """Doubles rows, in a grid that depends on data; rows that no step visits keep their contents."""

    def body(x_ref: Any, _: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] * 2 + (pl.program_id(0) == pl.num_programs(0) - 1)

    spec = pl.BlockSpec((8, 128), lambda i, j: (i, j))
    return pl.pallas_call(
        body, grid=(steps, 2), in_specs=[spec, spec], out_specs=spec, out_shape=f32(*x.shape),
        input_output_aliases={1: 0}, interpret=True,
    )(x, out)  # fmt: skip


def half_written(x: jax.Array, out: jax.Array) -> jax.Array:
    """The grid visits every second block of an aliased output; the others stay."""

    def body(x_ref: Any, _: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...]

    spec = pl.BlockSpec((8, 128), lambda i: (2 * i, 0))
    return pl.pallas_call(
        body,
        grid=(x.shape[0] // 16,),
        in_specs=[spec, spec],
        out_specs=spec,
        out_shape=f32(*x.shape),
        input_output_aliases={1: 0},
        interpret=True,
    )(x, out)


def row_statistics(x: jax.Array) -> Any:
    """Two outputs: one block a step, and one block a row of the grid, revisited."""

    def body(x_ref: Any, out_ref: Any, sum_ref: Any) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            sum_ref[...] = jnp.zeros_like(sum_ref)

        out_ref[...] = x_ref[...] * 2
        sum_ref[...] += x_ref[...]

    spec = pl.BlockSpec((8, 128), lambda i, j: (i, j))
    return pl.pallas_call(
        body,
        grid=(x.shape[0] // 8, x.shape[1] // 128),
        in_specs=[spec],
        out_specs=[spec, pl.BlockSpec((8, 128), lambda i, j: (i, 0))],
        out_shape=[f32(*x.shape), f32(x.shape[0], 128)],
        interpret=True,
    )(x)


def mapped(x: jax.Array) -> jax.Array:
    """``jax.vmap`` adds a dimension to the grid that the body does not know of."""
    return jax.vmap(running_sum)(x)


def loop_inside(x: jax.Array) -> jax.Array:
    """A loop in the body that asks for the step, which Pallas's interpreter cannot run."""

    def body(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = jnp.zeros_like(out_ref)

        def add(row: Any, _: None) -> None:
            out_ref[pl.ds(row, 1), :] = x_ref[pl.ds(row, 1), :] * pl.program_id(0).astype(jnp.float32)

        jax.lax.fori_loop(0, 8, add, None)

    spec = pl.BlockSpec((8, 128), lambda i: (i, 0))
    return pl.pallas_call(
        body, grid=(x.shape[0] // 8,), in_specs=[spec], out_specs=spec, out_shape=f32(*x.shape), interpret=True
    )(x)


ORDER = jnp.array([3, 1, 0, 2], jnp.int32)

CASES: dict[str, Case] = {
    "blocks": Case(lambda x: elementwise(x, (4, 2), (8, 128), lambda i, j: (i, j)), (numbers(32, 256),), (0, 1)),
    "ragged": Case(lambda x: elementwise(x, (4, 2), (8, 128), lambda i, j: (i, j)), (numbers(27, 200),), (0, 1)),
    "swapped": Case(lambda x: elementwise(x, (2, 4), (8, 128), lambda i, j: (j, i)), (numbers(32, 256),), (0, 1)),
    "flattened": Case(lambda x: elementwise(x, (8,), (8, 128), lambda i: (i // 2, i % 2)), (numbers(32, 256),), (0, 1)),
    "reversed": Case(lambda x: elementwise(x, (4,), (8, 128), lambda i: (3 - i, 0)), (numbers(32, 128),), (0,)),
    "clamped": Case(
        lambda x: elementwise(x, (6,), (8, 128), lambda i: (jnp.minimum(i, 3), 0)), (numbers(32, 128),), ()
    ),
    "diagonal": Case(lambda x: elementwise(x, (2,), (8, 128), lambda i: (i, i)), (numbers(16, 256),), ()),
    "first_blocks": Case(lambda x: elementwise(x, (2,), (8, 128), lambda i: (i, 0)), (numbers(32, 128),), (0,)),
    "one_input_block": Case(
        lambda x: elementwise(x, (4,), (8, 128), lambda i: (0, 0), lambda i: (i, 0)), (numbers(32, 128),), (0,)
    ),
    "no_grid": Case(lambda x: elementwise(x, (), (8, 128), lambda: (0, 0)), (numbers(8, 128),), ()),
    "matmul": Case(matmul, (numbers(16, 24), numbers(24, 32)), (0, 1)),
    "running_sum": Case(running_sum, (numbers(16, 512),), (0,)),
    "carried_over_rows": Case(carried_over_rows, (numbers(16, 256),), ()),
    "dynamic_slices": Case(dynamic_slices, (numbers(32, 128),), ()),
    "prefetched": Case(prefetched, (ORDER, numbers(4, 128)), ()),
    "scattered": Case(scattered, (jnp.array([3, 1, 1, 0], jnp.int32), numbers(4, 128)), ()),
    "accumulated": Case(accumulated, (numbers(32, 128), numbers(8, 128)), ()),
    "dynamic_grid": Case(as_many_steps_as_given, (jnp.int32(3), numbers(32, 256), numbers(32, 256)), ()),
    "half_written": Case(half_written, (numbers(64, 128), numbers(64, 128)), (0,)),
    "row_statistics": Case(row_statistics, (numbers(16, 512),), (0,)),
    "mapped": Case(mapped, (numbers(3, 16, 512),), (0, 1)),
    "loop_inside": Case(loop_inside, (numbers(32, 128),), (0,)),
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "loop_inside"])
def test_vectorized_is_interpreted(name: str) -> None:
    check(CASES[name].function, CASES[name].operands)


@pytest.mark.parametrize("name", CASES)
def test_the_axes_that_run_at_once(name: str) -> None:
    _, (call,) = calls(CASES[name].function, CASES[name].operands)
    assert grids.schedule(call).parallel == CASES[name].parallel


def test_a_loop_in_the_body_may_ask_for_the_step() -> None:
    x = numbers(32, 128)
    closed, _ = calls(loop_inside, (x,))
    (result,) = jax.jit(lambda *given: jaxprs.run(closed, given, "vectorized"))(x)
    steps = np.repeat(np.arange(4, dtype=np.float32), 8)[:, None]
    np.testing.assert_array_equal(np.asarray(result), np.asarray(x) * steps)


def test_blocks_of_consecutive_steps_need_no_gather() -> None:
    function, operands = CASES["flattened"].function, CASES["flattened"].operands
    closed, _ = calls(function, operands)
    text = str(jax.make_jaxpr(lambda *given: jaxprs.run(closed, given, "vectorized"))(*operands))
    assert "gather" not in text
    assert "while" not in text
    assert "scan" not in text


def test_padded_blocks_are_left_to_the_interpreter() -> None:
    spec = pl.BlockSpec((pl.Element(8, (0, 4)), pl.Element(128)), lambda i: (i * 8, 0))

    def function(x: jax.Array) -> jax.Array:
        return pl.pallas_call(
            double, grid=(2,), in_specs=[spec], out_specs=pl.BlockSpec((8, 128), lambda i: (i, 0)),
            out_shape=f32(16, 128), interpret=True,
        )(x)  # fmt: skip

    x = numbers(12, 128)
    closed, (call,) = calls(function, (x,))
    assert vectorized.why_not(call) == "its blocks are padded"
    (result,) = jaxprs.run(closed, (x,), "vectorized")
    np.testing.assert_array_equal(result[:12], x * 2)


@dataclasses.dataclass(frozen=True)
class Random:
    """A random kernel: grid, block, a map for each of two inputs and the output, what the body does."""

    grid: tuple[int, int, int]
    maps: tuple[tuple[str, str], ...]
    size: tuple[int, int]
    resets: int
    scratch: bool


MAPS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "i": lambda i, j, k: i,
    "j": lambda i, j, k: j,
    "k": lambda i, j, k: k,
    "0": lambda i, j, k: 0,
    "i*2+j": lambda i, j, k: i * 2 + j,
    "i//2": lambda i, j, k: i // 2,
    "k%2": lambda i, j, k: k % 2,
    "min(j,1)": lambda i, j, k: jnp.minimum(j, 1),
    "2-i": lambda i, j, k: 2 - i,
}
RANDOM = st.builds(
    Random,
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    maps=st.tuples(*[st.tuples(st.sampled_from(list(MAPS)), st.sampled_from(list(MAPS)))] * 3),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    resets=st.integers(0, 3),
    scratch=st.booleans(),
)


def random_kernel(case: Random) -> Callable[..., Any]:
    """Sums blocks into scratch or the output, set to zero where the last ``resets`` grid dimensions are 0."""

    def body(x_ref: Any, y_ref: Any, out_ref: Any, sum_ref: Any) -> None:
        target = sum_ref if case.scratch else out_ref
        first = [pl.program_id(axis) == 0 for axis in range(3 - case.resets, 3)]

        @pl.when(jnp.all(jnp.array(first)) if first else True)
        def _() -> None:
            target[...] = jnp.zeros_like(target)

        target[...] += x_ref[...] + 2 * y_ref[...] + pl.program_id(1).astype(jnp.float32)
        if case.scratch:
            out_ref[...] = target[...]

    def spec(names: tuple[str, str]) -> pl.BlockSpec:
        rows, columns = (MAPS[name] for name in names)
        return pl.BlockSpec((4, 4), lambda i, j, k: (rows(i, j, k), columns(i, j, k)))

    x_spec, y_spec, out_spec = map(spec, case.maps)
    return pl.pallas_call(
        body,
        grid=case.grid,
        in_specs=[x_spec, y_spec],
        out_specs=out_spec,
        out_shape=f32(*case.size),
        scratch_shapes=[pltpu.VMEM((4, 4), jnp.float32)],
        interpret=True,
    )


def in_bounds(case: Random) -> bool:
    """Whether every block of every operand starts inside the array, which Pallas asks for."""
    points = itertools.product(*map(range, case.grid))
    return all(
        4 * int(MAPS[name](*point)) < size and int(MAPS[name](*point)) >= 0
        for point in points
        for names in case.maps
        for name, size in zip(names, case.size, strict=True)
    )


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(RANDOM)
def test_random_kernels(case: Random) -> None:
    hypothesis.assume(in_bounds(case))
    check(random_kernel(case), (numbers(*case.size), numbers(*case.size) + 1))


@pytest.mark.parametrize("steps", [4, 1], ids=["parallel", "one step"])
def test_scoped_memory(steps: int) -> None:
    """Memory that a body asks for, in a branch and in a loop too, whether steps run at once or not."""

    def body(x_ref: Any, out_ref: Any) -> None:
        def within(scoped: Any) -> None:
            scoped[...] = x_ref[...] + 1
            out_ref[...] = scoped[...] * 2

        def add(index: Any, carry: Any) -> Any:
            def within_loop(scoped: Any) -> None:
                scoped[...] = out_ref[...]
                out_ref[...] = scoped[...] + pl.program_id(0).astype(jnp.float32)

            pl.run_scoped(within_loop, pltpu.VMEM((2, 8), jnp.float32))
            return carry

        pl.run_scoped(within, pltpu.VMEM((2, 8), jnp.float32))
        jax.lax.fori_loop(0, 3, add, 0)

    def function(x: jax.Array) -> jax.Array:
        block = pl.BlockSpec((2, 8), lambda i: (i, 0))
        return pl.pallas_call(
            body, grid=(steps,), in_specs=[block], out_specs=block, out_shape=f32(2 * steps, 8), interpret=True
        )(x)

    x = numbers(2 * steps, 8)
    closed, (call,) = calls(function, [x])
    assert grids.schedule(call).parallel == ((0,) if steps > 1 else ())
    (got,) = jax.jit(lambda given: jaxprs.run(closed, [given], "vectorized"))(x)
    np.testing.assert_allclose(got, (x + 1) * 2 + 3 * np.repeat(np.arange(steps), 2)[:, None], rtol=1e-6)
