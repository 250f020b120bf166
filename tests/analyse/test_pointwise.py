"""Which Pallas bodies compute each element of their outputs from the same element of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from tpu_lowering.analyse.pointwise import is_pointwise

BODIES: dict[str, tuple[Callable[..., None], bool]] = {}


def body(pointwise: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def enter(function: Callable[..., None]) -> Callable[..., None]:
        BODIES[function.__name__] = function, pointwise
        return function

    return enter


@body(True)
def gate(x: Any, y: Any, out: Any) -> None:
    out[...] = (x[:] * jax.nn.sigmoid(x[...].astype(jnp.float32))).astype(out.dtype) * y[...]


@body(True)
def where_with_scalars(x: Any, y: Any, out: Any) -> None:
    out[...] = jnp.where(x[...] > 0, jnp.full(x.shape, 2.0), y[...])


@body(True)
def stores_twice(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...]
    out[...] = y[...] + 1


@body(False)
def shifts(x: Any, y: Any, out: Any) -> None:
    out[...] = jnp.roll(x[...], 1) + y[...]


@body(False)
def sums(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...] - jnp.sum(y[...])


@body(False)
def reverses(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...] + jnp.flip(y[...])


@body(False)
def counts(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...] * y[...] + jnp.arange(64.0)


@body(False)
def asks_where_it_is(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...] + y[...] * pl.program_id(0)


@body(False)
def stores_half(x: Any, y: Any, out: Any) -> None:
    out[:32] = x[:32] + y[:32]


@body(False)
def reads_its_output(x: Any, y: Any, out: Any) -> None:
    out[...] = x[...]
    out[...] = out[...] + y[...]


@body(False)
def stores_nothing(x: Any, y: Any, out: Any) -> None:
    pass


@body(False)
def stores_on_a_condition(x: Any, y: Any, out: Any) -> None:
    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        out[...] = x[...] + y[...]


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name: str) -> None:
    function, expected = BODIES[name]
    block = pl.BlockSpec((64,), lambda i: (i,))
    call = pl.pallas_call(
        function,
        grid=(4,),
        in_specs=[block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((256,), jnp.float32),
        interpret=True,
    )
    (equation,) = jax.make_jaxpr(call)(jnp.ones(256), jnp.ones(256)).eqns
    assert is_pointwise(equation.params["jaxpr"], 2) is expected


def test_blocks_of_two_shapes_are_not_pointwise() -> None:
    call = pl.pallas_call(
        lambda x, out: out.__setitem__(..., x[...].reshape(8, 8)),
        out_shape=jax.ShapeDtypeStruct((8, 8), jnp.float32),
        interpret=True,
    )
    (equation,) = jax.make_jaxpr(call)(jnp.ones(64)).eqns
    assert not is_pointwise(equation.params["jaxpr"], 1)
