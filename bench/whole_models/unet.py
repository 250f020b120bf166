"""A part of a diffusion model's UNet: residual blocks, attention, and the way down and up again."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import nn
from torch.nn import functional as F

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a part, and of what it is given."""

    channels: int = 320
    time: int = 1280
    head: int = 64
    groups: int = 32
    batch: int = 8
    side: int = 64


SMALL = Sizes(channels=128, time=48, head=64, batch=2, side=16)


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a group norm; the time's embedding is added between them."""

    def __init__(self, channels: int, out: int, sizes: Sizes) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(sizes.groups, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(sizes.time, out)
        self.norm2, self.conv2 = nn.GroupNorm(sizes.groups, out), nn.Conv2d(out, out, 3, padding=1)
        self.around = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.around(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    """All pixels see all pixels."""

    def __init__(self, channels: int, sizes: Sizes) -> None:
        super().__init__()
        self.head, self.norm = sizes.head, nn.GroupNorm(sizes.groups, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            one(tokens).unflatten(-1, (-1, self.head)).transpose(1, 2) for one in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).unflatten(-1, x.shape[2:])


class Part(nn.Module):
    """Down to half the side and twice the channels, and up again."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        few, many = sizes.channels, 2 * sizes.channels
        self.first, self.attention = Residual(few, few, sizes), Attention(few, sizes)
        self.down = nn.Conv2d(few, few, 3, stride=2, padding=1)
        self.middle = Residual(few, many, sizes)
        self.up = nn.Conv2d(many, many, 3, padding=1)
        self.last = Residual(many + few, few, sizes)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.first(x, time))
        below = self.middle(self.down(x), time)
        above = self.up(F.interpolate(below, scale_factor=2.0, mode="nearest"))
        return self.last(torch.cat((above, x), 1), time)


@dataclasses.dataclass(frozen=True)
class Twin:
    """The part in JAX, on [batch, height, width, channels]."""

    sizes: Sizes
    on_cpu: bool

    def norm(self, x: jax.Array, own: Weights, name: str) -> jax.Array:
        """Group norm: sums of channels first, of which those of groups are made."""
        wide = x.astype(jnp.float32)
        sums = jnp.stack((jnp.mean(wide, (1, 2)), jnp.mean(wide * wide, (1, 2))))
        groups = jnp.mean(sums.reshape(2, x.shape[0], self.sizes.groups, -1), -1)
        scale = lax.rsqrt(groups[1] - jnp.square(groups[0]) + EPSILON)
        mean, scale = (jnp.repeat(one, x.shape[-1] // self.sizes.groups, -1) for one in (groups[0], scale))
        scale = scale * own[f"{name}.weight"].astype(jnp.float32)
        shift = own[f"{name}.bias"].astype(jnp.float32) - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)

    def conv(self, x: jax.Array, own: Weights, name: str, stride: int = 1) -> jax.Array:
        edge = own[f"{name}.weight"].shape[-1] // 2
        made = lax.conv_general_dilated(
            x, own[f"{name}.weight"], (stride, stride), ((edge, edge), (edge, edge)),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )  # fmt: skip
        return made + own[f"{name}.bias"]

    def residual(self, x: jax.Array, time: jax.Array, own: Weights) -> jax.Array:
        hidden = self.conv(jax.nn.silu(self.norm(x, own, "norm1")), own, "conv1")
        hidden = hidden + parts.linear(jax.nn.silu(time), own["time.weight"], own["time.bias"])[:, None, None]
        made = self.conv(jax.nn.silu(self.norm(hidden, own, "norm2")), own, "conv2")
        return made + (self.conv(x, own, "around") if "around.weight" in own else x)

    def attention(self, x: jax.Array, own: Weights) -> jax.Array:
        tokens = self.norm(x, own, "norm").reshape(x.shape[0], -1, x.shape[-1])
        query, key, value = (
            parts.to_heads(tokens, own[f"{name}.weight"], self.sizes.head, own[f"{name}.bias"])
            for name in ("query", "key", "value")
        )
        attended = parts.attention(query, key, value, causal=False, on_cpu=self.on_cpu, narrow=True)
        return x + parts.from_heads(attended, own["out.weight"], own["out.bias"]).reshape(x.shape)

    def forward(self, weights: Weights, x: jax.Array, time: jax.Array) -> jax.Array:
        x = self.residual(x.transpose(0, 2, 3, 1), time, parts.subset(weights, "first."))
        x = self.attention(x, parts.subset(weights, "attention."))
        below = self.residual(self.conv(x, weights, "down", 2), time, parts.subset(weights, "middle."))
        above = self.conv(jnp.repeat(jnp.repeat(below, 2, 1), 2, 2), weights, "up")
        made = self.residual(jnp.concatenate((above, x), -1), time, parts.subset(weights, "last."))
        return made.transpose(0, 3, 1, 2)


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module = made(lambda: Part(sizes), small).eval()
    dtype = torch.float32 if small else torch.bfloat16
    x = torch.randn(sizes.batch, sizes.channels, sizes.side, sizes.side, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    return Built(module, module, (x, torch.randn(sizes.batch, sizes.time, dtype=dtype)), Twin(sizes, small).forward)


CASES = (Case("unet_forward", "UNet blocks with attention, down and up, forward, 8x320x64x64", False, build, 1.0),)
