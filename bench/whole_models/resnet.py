"""The first stage of ResNet-50, trained: three bottlenecks with batch norms that count the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import nn

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

EPSILON = 1e-5
MOMENTUM = 0.1


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
    """[batch, height, width, channels] by torch's [out, in, height, width], with padding that keeps the size."""
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))


def normed(x: jax.Array, weights: Weights, name: str, running: dict[str, jax.Array]) -> jax.Array:
    """Batch norm in training; what becomes of the running statistics goes to ``running``."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, (0, 1, 2))
    variance = jnp.mean(jnp.square(wide), (0, 1, 2)) - jnp.square(mean)
    count = x.size // x.shape[-1]
    for which, new in (("running_mean", mean), ("running_var", variance * (count / (count - 1)))):
        old = weights[f"{name}.{which}"]
        running[f"{name}.{which}"] = ((1 - MOMENTUM) * old + MOMENTUM * lax.stop_gradient(new)).astype(old.dtype)
    return scaled(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])


@parts.again
def scaled(x: jax.Array, mean: jax.Array, variance: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """What a batch norm gives, of its statistics."""
    scale = lax.rsqrt(variance + EPSILON) * weight.astype(jnp.float32)
    shift = bias.astype(jnp.float32) - mean * scale
    return (x.astype(jnp.float32) * scale + shift).astype(x.dtype)


def bottleneck(x: jax.Array, weights: Weights, name: str, running: dict[str, jax.Array]) -> jax.Array:
    around = x
    if f"{name}.downsample.0.weight" in weights:
        around = convolved(x, weights[f"{name}.downsample.0.weight"])
        around = normed(around, weights, f"{name}.downsample.1", running)
    for at in (1, 2):
        x = normed(convolved(x, weights[f"{name}.conv{at}.weight"]), weights, f"{name}.bn{at}", running)
        x = jax.nn.relu(x)
    x = normed(convolved(x, weights[f"{name}.conv3.weight"]), weights, f"{name}.bn3", running)
    return jax.nn.relu(x + around)


def twin(sizes: Sizes, weights: Weights, x: jax.Array) -> jax.Array:
    """The mean square of the stage's result, float32 []; ``x`` is [batch, channels, height, width]."""
    x, running = x.transpose(0, 2, 3, 1), {}
    for at in range(sizes.blocks):
        x = bottleneck(x, weights, f"blocks.{at}", running)
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module = made(lambda: Stage(sizes), small).train()
    shape = (sizes.batch, sizes.channels, sizes.side, sizes.side)
    x = torch.randn(shape, dtype=torch.float32 if small else torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)

    def function(x: torch.Tensor) -> torch.Tensor:
        return module(x).float().square().mean()

    def by_hand(weights: Weights, x: jax.Array) -> Any:
        return twin(sizes, weights, x)

    return Built(module, function, (x,), by_hand)


CASES = (Case("resnet_training", "ResNet-50 stage 1, training, batch 64", True, build, 1.05),)
