"""AdamW's step on the weights of a Llama layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import torch
from torch import nn
from torch.optim.adamw import adamw

from bench.whole_models.case import Built, Case, Weights

RATE, DECAY, FIRST, SECOND, EPSILON = 1e-3, 0.01, 0.9, 0.999, 1e-8
STEPS = 10.0
"""Steps that were made before."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a layer's weights."""

    width: int = 4096
    hidden: int = 14336
    key: int = 1024

    def shapes(self) -> Iterator[tuple[int, ...]]:
        yield from ((self.width, self.width), (self.key, self.width), (self.key, self.width), (self.width, self.width))
        yield from ((self.hidden, self.width), (self.hidden, self.width), (self.width, self.hidden))
        yield from ((self.width,), (self.width,))


SMALL = Sizes(width=24, hidden=40, key=8)


def updated(
    weight: jax.Array, gradient: jax.Array, first: jax.Array, second: jax.Array, step: jax.Array
) -> tuple[jax.Array, ...]:
    """(weight, first, second) after a step; in float32, as they are kept."""
    wide = gradient.astype(jnp.float32)
    mean = FIRST * first.astype(jnp.float32) + (1 - FIRST) * wide
    square = SECOND * second.astype(jnp.float32) + (1 - SECOND) * wide * wide
    moved = mean / (1 - FIRST**step) / (jnp.sqrt(square / (1 - SECOND**step)) + EPSILON)
    made = weight.astype(jnp.float32) * (1 - RATE * DECAY) - RATE * moved
    return made.astype(weight.dtype), mean.astype(first.dtype), square.astype(second.dtype)


def twin(weights: Weights, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """(the last gradient, and for each weight after a step: itself, its step, its moments), of all gradients, and of
    the same for each weight before the step."""
    del weights
    count = len(arrays) // 5
    gradients, held = arrays[:count], arrays[count:]
    results: list[jax.Array] = []
    for at, gradient in enumerate(gradients):
        weight, step, first, second = held[4 * at : 4 * at + 4]
        weight, first, second = updated(weight, gradient, first, second, step + 1)
        results += [weight, step + 1, first, second]
    return gradients[-1], *results


def build(small: bool) -> Built:
    sizes, dtype = (SMALL, torch.float32) if small else (Sizes(), torch.bfloat16)

    def values(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape) if small else torch.empty(shape, dtype=dtype)

    shapes = list(sizes.shapes())
    weights, first, second = ([values(shape) for shape in shapes] for _ in range(3))
    second = [one.abs() for one in second]
    steps = [torch.tensor(STEPS) for _ in shapes]

    @torch.no_grad()
    def function(*gradients: torch.Tensor) -> torch.Tensor:
        adamw(
            weights, list(gradients), first, second, [], steps, foreach=False, amsgrad=False, beta1=FIRST,
            beta2=SECOND, lr=RATE, weight_decay=DECAY, eps=EPSILON, maximize=False,
        )  # fmt: skip
        return gradients[-1].clone()

    held = tuple(one for group in zip(weights, steps, first, second, strict=True) for one in group)
    return Built(nn.Module(), function, tuple(values(shape) for shape in shapes), twin, held)


CASES = (Case("adamw", "AdamW's step on the weights of a Llama-8B layer", False, build, 1.0),)
