"""Dynamic slices that stay slices when they are mapped.

``jax.vmap`` turns a dynamic slice into a gather, and an update of one into a scatter, which XLA runs on a CPU
element by element. Where all mapped elements are cut at the same place, one slice of the whole array says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def take(array: jax.Array, starts: Sequence[Any], sizes: Sequence[int]) -> jax.Array:
    """``jax.lax.dynamic_slice``: starts that reach past the end are moved back."""

    def cut(array: jax.Array, *starts: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(array, starts, sizes)

    def whole(array: jax.Array, *starts: jax.Array) -> jax.Array:
        return take(array, _from_start(starts), (array.shape[0], *sizes))

    return _mapped_whole(cut, whole, arrays=1)(array, *starts)


def put(array: jax.Array, part: jax.Array, starts: Sequence[Any]) -> jax.Array:
    """``jax.lax.dynamic_update_slice``: starts that reach past the end are moved back."""

    def paste(array: jax.Array, part: jax.Array, *starts: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(array, part, starts)

    def whole(array: jax.Array, part: jax.Array, *starts: jax.Array) -> jax.Array:
        return put(array, part, _from_start(starts))

    return _mapped_whole(paste, whole, arrays=2)(array, part, *starts)


def _from_start(starts: Sequence[jax.Array]) -> list[jax.Array]:
    """Starts for arrays with one more leading dimension."""
    return [jnp.zeros((), starts[0].dtype) if starts else jnp.int32(0), *starts]


def _mapped_whole(
    function: Callable[..., jax.Array], whole: Callable[..., jax.Array], arrays: int
) -> Callable[..., jax.Array]:
    """A function of arrays and starts that is ``whole`` of the mapped arrays where no start is mapped."""
    wrapped = custom_vmap(function)

    def rule(count: int, mapped: Sequence[bool], *given: jax.Array) -> tuple[jax.Array, bool]:
        if any(mapped[arrays:]):
            return jax.vmap(function, [0 if own else None for own in mapped], axis_size=count)(*given), True
        stacked = [
            value if own else jnp.broadcast_to(value, (count, *value.shape))
            for value, own in zip(given[:arrays], mapped, strict=False)
        ]
        return whole(*stacked, *given[arrays:]), True

    wrapped.def_vmap(rule)
    return wrapped
