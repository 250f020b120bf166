"""The second proof of what becomes of old contents, on bodies written as plain functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpu_lowering.analyse import integers
from tpu_lowering.analyse.functional_body import FunctionalBody
from tpu_lowering.analyse.old_contents import Outcome, followed

F32 = jax.ShapeDtypeStruct((8, 4), jnp.float32)
LEFT, GONE, READ = Outcome(False, True), Outcome(False, False), "read"


def outcome(function, steps=((),), extents=()):
    """What becomes of the second of two values that a function of two arrays gives back changed."""
    return followed(FunctionalBody(jax.make_jaxpr(function)(F32, F32), None, tuple(extents)), 1, [list(steps)])


def rounds(count, body):
    return lambda x, old: (x, jax.lax.fori_loop(0, count, lambda i, state: body(i, x, state), old))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, old: (x, x * 2), GONE),
        (lambda x, old: (x, old), LEFT),
        (lambda x, old: (x, jax.lax.dynamic_update_slice(old, x[:2], (1, 0))), LEFT),
        (lambda x, old: (x, jax.lax.dynamic_update_slice(old, x, (0, 0))), GONE),
        (lambda x, old: (x, jnp.where(x > 0, x, old)), LEFT),
        (lambda x, old: (x, old.at[jnp.array([3, 1])].set(x[:2])), LEFT),
        (lambda x, old: (x, old.reshape(4, 8).T.T.reshape(8, 4)), LEFT),
        (rounds(9, lambda i, x, state: jax.lax.dynamic_update_slice(state, x[:1], (i, 0))), LEFT),
        (rounds(9, lambda i, x, state: x + 1), GONE),
        (rounds(0, lambda i, x, state: state + 1), LEFT),
        # What follows reads.
        (lambda x, old: (x, old.at[jnp.array([3, 1])].add(x[:2])), READ),
        (lambda x, old: (x, old[::-1]), READ),
        (lambda x, old: (x, old.reshape(4, 8).T.reshape(8, 4)), READ),
        (lambda x, old: (x, jax.lax.dynamic_update_slice(old, old[:2], (1, 0))), READ),
        (lambda x, old: (x + old, x), READ),
        (lambda x, old: (old, x), READ),
        (lambda x, old: (x, jnp.where(old > 0, x, x + 1)), READ),
        (lambda x, old: (x, jax.lax.cond(old[0, 0] > 0, lambda: x, lambda: x + 1)), READ),
        (lambda x, old: (x, jax.lax.while_loop(lambda s: s.sum() < old[0, 0], lambda s: s + 1, x)), READ),
        (rounds(9, lambda i, x, state: state + 1), READ),
        (rounds(9, lambda i, x, state: jnp.where(i == 7, state * 2, state)), READ),
        (lambda x, old: (x, jax.lax.scan(lambda c, row: (c, row * 1), 0, old)[1]), READ),
    ],
)
def test_where_old_contents_go(function, expected):
    found = outcome(function)
    assert found.is_read if expected == READ else found == expected


def test_parts_put_back_where_they_were():
    def function(x, old):
        at = x[0, 0].astype(jnp.int32)
        row = jax.lax.dynamic_slice(old, (at, 0), (1, 4))
        row = jax.lax.dynamic_update_slice(row, x[:1, :2], (0, 1))
        return x, jax.lax.dynamic_update_slice(old, row, (at, 0))

    def elsewhere(x, old):
        row = jax.lax.dynamic_slice(old, (x[0, 0].astype(jnp.int32), 0), (1, 4))
        return x, jax.lax.dynamic_update_slice(old, row, (x[0, 1].astype(jnp.int32), 0))

    assert outcome(function) == LEFT
    assert outcome(elsewhere).is_read


def test_a_run_of_steps():
    """What a step overwrites, later steps do not read."""
    first = FunctionalBody(jax.make_jaxpr(lambda x, old: (x, x + 0 * old))(F32, F32), None, (2,))
    assert followed(first, 1, [[(0,), (1,)]]).is_read
    fills = FunctionalBody(jax.make_jaxpr(lambda x, old: (x, x * 2))(F32, F32), None, (2,))
    assert followed(fills, 1, [[(0,), (1,)]]) == GONE


def scalar_equation(function, *values):
    closed = jax.make_jaxpr(function)(*values)
    (found,) = integers.positions(closed, [np.broadcast_to(value, (1,)) for value in values], 1)
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (lambda x: (x * 64).astype(jnp.int8), [np.int32(2)]),
        (lambda x: x * (1 << 30) * 2, [np.int32(1)]),
        (lambda x: x.astype(jnp.uint8) - jnp.uint8(3), [np.int32(1)]),
        (lambda x: -x.astype(jnp.int8), [np.int32(-128)]),
        (lambda x: jax.lax.div(x, jnp.int32(3)), [np.int32(-7)]),
        (lambda x: jax.lax.rem(x, jnp.int32(3)), [np.int32(-7)]),
        (lambda x: x // 3, [np.int32(-7)]),
        (lambda x: x % 3, [np.int32(-7)]),
        (lambda x: jnp.where(x > 3, x, -x), [np.int32(2)]),
        (lambda x: jnp.clip(x, 1, 5), [np.int32(9)]),
        (lambda x: (x > 2) & ~(x == 5), [np.int32(4)]),
        (lambda x: x ^ 7 | 8, [np.int32(5)]),
    ],
)
def test_integers_wrap_as_jax_computes_them(function, values):
    assert scalar_equation(function, *values) == function(*map(jnp.asarray, values))


def test_unknown_integers():
    assert scalar_equation(lambda x: jax.lax.div(x, jnp.int32(0)), np.int32(4)) is None
    assert scalar_equation(lambda x: jnp.sin(x.astype(jnp.float32)).astype(jnp.int32), np.int32(4)) is None
