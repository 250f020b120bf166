"""Coverage from grid and index map, against visiting every block of every grid point."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.experimental import pallas as pl

from tpu_lowering.analyse.functions import function_effects
from tpu_lowering.analyse.pallas import call_effects
from tpu_lowering.ir.kernels import Access
from tpu_lowering.ir.types import f32
from tpu_lowering.kernels import jaxprs

# Index maps over a grid of two dimensions, each a function of the grid point.
MAPS = {
    "each its own": lambda i, j: (i, j),
    "swapped": lambda i, j: (j, i),
    "rows only": lambda i, j: (i, 0),
    "flattened": lambda i, j: (i * 2 + j, 0),
    "reversed": lambda i, j: (3 - i, j),
    "halved": lambda i, j: (i // 2, j),
    "clamped": lambda i, j: (jnp.minimum(i, 2), j),
    "wrapped": lambda i, j: ((i + j) % 3, j),
}


def effects_of(body, grid, block, index_map, shape):
    """Effects of a call whose only output walks over an array of ``shape``."""

    def call(x):
        spec = pl.BlockSpec(block, index_map)
        return pl.pallas_call(
            body, grid=grid, in_specs=[], out_specs=spec, out_shape=jax.ShapeDtypeStruct(shape, jnp.float32)
        )()

    closed = jaxprs.trace(call, [f32[1]])
    equation = next(e for e in closed.jaxpr.eqns if e.primitive.name == "pallas_call")
    return call_effects(equation).outputs[0]


def fill(out_ref):
    out_ref[...] = jnp.ones_like(out_ref)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MAPS)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 7)),
)
def test_covers_iff_every_block_is_visited(name, grid, block, shape):
    index_map = MAPS[name]
    visited = np.zeros([-(-size // step) for size, step in zip(shape, block, strict=True)], bool)
    for point in itertools.product(*map(range, grid)):
        at = tuple(int(p) for p in index_map(*point))
        if all(0 <= p < count for p, count in zip(at, visited.shape, strict=True)):
            visited[at] = True
    assert effects_of(fill, grid, block, index_map, shape).covers == bool(visited.all())


def when(condition, action):
    pl.when(condition)(action)


def first_then_accumulate(out_ref):
    when(pl.program_id(1) == 0, lambda: fill(out_ref))
    out_ref[...] += 1.0


def accumulate_from_the_start(out_ref):
    out_ref[...] += 1.0


def store_at_the_last_step(out_ref):
    when(pl.program_id(1) == pl.num_programs(1) - 1, lambda: fill(out_ref))


def store_at_the_second_step(out_ref):
    when(pl.program_id(1) == 1, lambda: fill(out_ref))


def store_one_row(out_ref):
    out_ref[0, :] = jnp.ones_like(out_ref[0, :])


def store_then_load(out_ref):
    fill(out_ref)
    out_ref[...] = out_ref[...] * 2


def load_one_row_then_store(out_ref):
    row = jnp.ones((8,)) * 0 + out_ref[0, :]
    out_ref[...] = jnp.broadcast_to(row, out_ref.shape)


def store_in_both_branches(out_ref):
    when(pl.program_id(0) > 1, lambda: fill(out_ref))
    when(pl.program_id(0) <= 1, lambda: fill(out_ref))


def store_in_a_loop(out_ref):
    def step(i, carry):
        fill(out_ref)
        return carry

    jax.lax.fori_loop(0, 2, step, 0)


@pytest.mark.parametrize(
    ("body", "reads", "covers"),
    [
        (first_then_accumulate, False, True),
        (accumulate_from_the_start, True, False),
        (store_at_the_last_step, False, True),
        (store_at_the_second_step, False, False),
        (store_one_row, False, False),
        (store_then_load, False, True),
        (load_one_row_then_store, True, False),
        (store_in_both_branches, False, False),  # the two conditions are not known to exclude a gap
        (store_in_a_loop, False, True),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_body_does_to_its_block(body, reads, covers):
    """Blocks of the first grid dimension are visited once for each step of the second."""
    effect = effects_of(body, (4, 3), (2, 8), lambda i, k: (i, 0), (8, 8))
    assert (effect.reads, effect.covers, effect.writes) == (reads, covers, True)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, out: x + 1, (False, True, True)),
        (lambda x, out: out, (True, False, False)),
        (lambda x, out: out + x, (True, True, False)),
        (lambda x, out: out.at[0].set(x[0]), (True, True, False)),
        (lambda x, out: jax.jit(lambda a, b: a * 2)(x, out), (False, True, True)),
        (lambda x, out: jnp.zeros_like(out) + x, (False, True, True)),
    ],
    ids=["ignores", "returns it", "adds", "sets a row", "ignores inside jit", "shape only"],
)
def test_what_a_function_does_to_an_argument(function, expected):
    closed = jaxprs.trace(function, [f32[4, 8], f32[4, 8]])
    access: Access = function_effects(closed.jaxpr, [None, 0]).access[1]
    assert (access.reads, access.writes, access.covers) == expected
