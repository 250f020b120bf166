"""The first stage of ResNet-50, trained: three bottlenecks with batch norms that count the batch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from torch import nn

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a stage, and of its input."""

    channels: int = 64
    width: int = 64
    expansion: int = 4
    blocks: int = 3
    batch: int = 64
    side: int = 56


SMALL = Sizes(channels=8, width=8, blocks=2, batch=2, side=8)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with a batch norm, and a way around them."""

    def __init__(self, channels: int, width: int, expansion: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        out = width * expansion
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + around)


class Stage(nn.Module):
    """Bottlenecks one after the other."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        out = sizes.width * sizes.expansion
        channels = [sizes.channels] + [out] * (sizes.blocks - 1)
        self.blocks = nn.Sequential(*(Bottleneck(c, sizes.width, sizes.expansion) for c in channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def convolved(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[height, width, batch, channels], as XLA lays images out for a TPU, by torch's [out, in, height, width]; with
    padding that keeps the size."""
    made = lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("HWNC", "OIHW", "HWNC"))
    return checkpoint_name(made, KEPT)


def normed(x: jax.Array, weights: Weights, name: str) -> jax.Array:
    """Batch norm in training. What becomes of the running statistics, a few kilobytes, is left out."""
    wide = x.astype(jnp.float32)
    mean = checkpoint_name(jnp.mean(wide, (0, 1, 2)), KEPT)
    variance = checkpoint_name(jnp.mean(jnp.square(wide), (0, 1, 2)), KEPT) - jnp.square(mean)
    scale = lax.rsqrt(variance + EPSILON) * weights[f"{name}.weight"].astype(jnp.float32)
    shift = weights[f"{name}.bias"].astype(jnp.float32) - mean * scale
    return (wide * scale + shift).astype(x.dtype)


KEPT = "kept"
ONLY_KEPT = jax.checkpoint_policies.save_only_these_names(KEPT)
"""The backward gets what convolutions give, and statistics; it computes norms and activations again."""


@functools.partial(parts.again, policy=ONLY_KEPT)
def bottleneck(x: jax.Array, weights: Weights) -> jax.Array:
    around = x
    if "downsample.0.weight" in weights:
        around = normed(convolved(x, weights["downsample.0.weight"]), weights, "downsample.1")
    for at in (1, 2):
        x = jax.nn.relu(normed(convolved(x, weights[f"conv{at}.weight"]), weights, f"bn{at}"))
    return jax.nn.relu(normed(convolved(x, weights["conv3.weight"]), weights, "bn3") + around)


def twin(sizes: Sizes, weights: Weights, x: jax.Array) -> jax.Array:
    """The mean square of the stage's result, float32 []; ``x`` is [batch, channels, height, width]."""
    x = x.transpose(2, 3, 0, 1)
    for at in range(sizes.blocks):
        x = bottleneck(x, parts.subset(weights, f"blocks.{at}."))
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module = made(lambda: Stage(sizes), small).train()
    module = module if small else module.to(torch.bfloat16)  # running statistics too, or eager refuses
    shape = (sizes.batch, sizes.channels, sizes.side, sizes.side)
    x = torch.randn(shape, dtype=torch.float32 if small else torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)

    def function(x: torch.Tensor) -> torch.Tensor:
        return module(x).float().square().mean()

    def by_hand(weights: Weights, x: jax.Array) -> Any:
        return twin(sizes, weights, x)

    return Built(module, function, (x,), by_hand)


CASES = (Case("resnet_training", "ResNet-50 stage 1, training, batch 64", True, build, 1.05),)
