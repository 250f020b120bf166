"""A layer of BERT-large, trained with dropout of attention weights and of what the layer's parts add."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bench.whole_models import bert
from bench.whole_models.case import Built, Case, Weights


@dataclasses.dataclass(frozen=True)
class Sizes(bert.Sizes):
    """Of a layer, and of its input."""

    dropped: float = 0.1

    def config(self) -> Any:
        config = super().config()
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = self.dropped
        return config


SMALL = Sizes(width=128, hidden=96, heads=2, batch=2, length=128, dropped=0.0)


def _zeroed(x: jax.Array, key: jax.Array, share: float) -> jax.Array:
    if not share:
        return x
    kept = jax.random.bernoulli(key, 1 - share, x.shape)
    return jnp.where(kept, x / (1 - share), 0).astype(x.dtype)


dropout = jax.custom_vjp(_zeroed, nondiff_argnums=(2,))
"""Zeros in a share of the places; the gradient draws them again, so that no mask is kept."""


def _dropout(x: jax.Array, key: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
    return _zeroed(x, key, share), key


def _dropout_gradient(share: float, key: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _zeroed(gradient, key, share), None


dropout.defvjp(_dropout, _dropout_gradient)


@functools.partial(jax.checkpoint, static_argnums=(4,))
def attention(query: jax.Array, key: jax.Array, value: jax.Array, draws: jax.Array, share: float) -> jax.Array:
    """Of [batch, heads, length, width]; the gradient computes the weights again."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", query * query.shape[-1] ** -0.5, key)
    weights = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(query.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", dropout(weights, draws, share), value)


def twin(sizes: Sizes, weights: Weights, x: jax.Array, key: jax.Array) -> jax.Array:
    """The mean square of a layer's result, float32 []."""
    draws = jax.random.split(key, 3)

    def attend(*heads: jax.Array) -> jax.Array:
        return attention(*heads, draws[0], sizes.dropped)

    return bert.layer(sizes, weights, x, attend, lambda made, at: dropout(made, draws[at], sizes.dropped))


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    return bert.built(sizes, small, functools.partial(twin, sizes), draws=True)


CASES = (Case("bert_dropout", "BERT-large layer with dropout, training 16x512", True, build, 1.0),)
