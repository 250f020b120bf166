"""The hand-written twins compute what the models do: results, caches and gradients, at small sizes."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bench.whole_models import bert_dropout
from bench.whole_models.case import Built, flat
from bench.whole_models.cases import CASES


def arrays(built: Built) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    weights = {name: array(value) for name, value in built.weights().items()}
    given = [array(value) for value in (*built.inputs, *built.caches)]
    return weights, given + [jax.random.PRNGKey(0)] * built.draws


def array(value: torch.Tensor) -> jax.Array:
    if value.dtype == torch.float8_e4m3fn:  # NumPy has no such type of its own
        return jax.lax.bitcast_convert_type(jnp.asarray(value.view(torch.uint8).numpy()), jnp.float8_e4m3fn)
    return jnp.asarray(value.detach().numpy())


def equal(got: Any, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Within what float32 rounds: relative to the largest element."""
    wanted = expected.detach().numpy()
    limit = 2e-5 * max(scale, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=0, atol=limit)


FIRST = ("llama_decode", "llama_training", "mixtral_prefill", "bert_training", "resnet_training", "int8_mlp")
"""The default run has these; ``make test-models`` has all."""
NAMES = [name for name in CASES if name in FIRST or os.environ.get("TPU_LOWERING_MODELS") == "all"]


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_computes_what_the_model_does(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    built = case.build(True)
    weights, given = arrays(built)
    if case.trains:
        loss = built.function(*built.inputs)
        loss.backward()
        trained = {name: weights[name] for name in built.trained()}
        twin = jax.jit(jax.value_and_grad(lambda own: built.twin({**weights, **own}, *given)))
        twin_loss, gradients = twin(trained)
        equal(twin_loss, loss)
        for name, value in built.module.named_parameters():
            assert value.grad is not None
            equal(gradients[name], value.grad, scale=1e-2)
        return
    with torch.no_grad():
        results = list(flat(built.function(*built.inputs)))
    found = list(flat(jax.jit(built.twin)(weights, *given)))
    assert len(found) == len(results) + len(built.caches)
    for got, expected in zip(found, (*results, *built.caches), strict=True):
        equal(got, expected)


def test_dropout_keeps_the_mean_and_its_gradient_has_the_same_zeros() -> None:
    share, x = 0.1, jnp.ones((512, 512))
    key = jax.random.PRNGKey(0)
    dropped, pull = jax.vjp(lambda x: bert_dropout.dropout(x, key, share), x)
    zeros = float(jnp.mean(dropped == 0))
    assert abs(zeros - share) < 4 * (share * (1 - share) / x.size) ** 0.5
    assert abs(float(jnp.mean(dropped)) - 1) < 4 * (share / (1 - share) / x.size) ** 0.5
    np.testing.assert_array_equal(np.asarray(pull(x)[0]), np.asarray(dropped))


def test_attention_with_dropout_has_the_mean_of_attention_without() -> None:
    query, key, value = (jax.random.normal(jax.random.PRNGKey(at), (1, 2, 64, 32)) for at in range(3))
    whole = bert_dropout.attention(query, key, value, jax.random.PRNGKey(3), 0.0)
    draw = jax.jit(lambda own: bert_dropout.attention(query, key, value, own, 0.1))
    drawn = jnp.stack([draw(own) for own in jax.random.split(jax.random.PRNGKey(4), 400)])
    error = jnp.std(drawn, 0) / len(drawn) ** 0.5
    assert float(jnp.max(jnp.std(drawn, 0))) > 0.01
    assert float(jnp.max(jnp.abs(jnp.mean(drawn, 0) - whole) / error)) < 6
