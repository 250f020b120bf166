"""A decoder layer's training step on a mesh of data and model, in torch and by hand in JAX.

Both shard alike: activations [batch / data, sequence / model, width], weights over both axes. A weight is gathered
over data where it is used and its gradient scattered; the sequence is gathered over model before products by columns
and scattered after those by rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from torch import nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd, reduce_scatter_tensor_autograd
from torch.nn import functional

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Layer:
    """Sizes of a layer, and of the mesh.

    Attributes:
        width: of the activations.
        hidden: of the MLP.
        head: width of an attention head.
        batch, sequence: of all devices together.
        data, model: devices along the two axes.
    """

    width: int = 4096
    hidden: int = 14336
    head: int = 128
    batch: int = 16
    sequence: int = 2048
    data: int = 4
    model: int = 4

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a device's weights; the first dimension is what is gathered over data."""
        by_columns = (self.width // self.data, self.width // self.model)
        wide = (self.width // self.data, self.hidden // self.model)
        return {
            "first_norm": (self.width // self.data,),
            "query": by_columns,
            "key": by_columns,
            "value": by_columns,
            "out": (self.width // self.model // self.data, self.width),
            "second_norm": (self.width // self.data,),
            "gate": wide,
            "up": wide,
            "down": (self.hidden // self.model // self.data, self.width),
        }

    def activations(self) -> tuple[int, ...]:
        """The shape of a device's activations."""
        return (self.batch // self.data, self.sequence // self.model, self.width)


class TorchLayer(nn.Module):
    """The layer, on one device's parts: bfloat16."""

    def __init__(self, layer: Layer, mesh: Any) -> None:
        super().__init__()
        self.layer, self.mesh = layer, mesh
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(shape, dtype=torch.bfloat16)) for name, shape in layer.shapes().items()}
        )

    def whole(self, name: str) -> torch.Tensor:
        return all_gather_tensor_autograd(self.weights[name], 0, (self.mesh, 0))

    def normed(self, x: torch.Tensor, name: str) -> torch.Tensor:
        part = functional.rms_norm(x, (self.layer.width,), self.whole(name), EPSILON)
        return all_gather_tensor_autograd(part, 1, (self.mesh, 1))

    def scattered(self, x: torch.Tensor) -> torch.Tensor:
        return reduce_scatter_tensor_autograd(x, "sum", 1, (self.mesh, 1))

    def heads(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return (x @ self.whole(name)).unflatten(-1, (-1, self.layer.head)).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` as ``Layer.activations`` says; a loss, float32 []."""
        normed = self.normed(x, "first_norm")
        query, key, value = (self.heads(normed, name) for name in ("query", "key", "value"))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.scattered(attended.transpose(1, 2).flatten(2) @ self.whole("out"))
        normed = self.normed(x, "second_norm")
        hidden = functional.silu(normed @ self.whole("gate")) * (normed @ self.whole("up"))
        x = x + self.scattered(hidden @ self.whole("down"))
        return x.float().square().mean()


def jax_step(layer: Layer) -> Any:
    """The gradients of the same loss: a function of local activations and weights, for ``shard_map``."""

    def loss(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        def whole(name: str) -> jax.Array:
            return lax.all_gather(weights[name], "data", axis=0, tiled=True)

        def normed(x: jax.Array, name: str) -> jax.Array:
            wide = x.astype(jnp.float32)
            scaled = wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + EPSILON)
            return lax.all_gather(scaled.astype(x.dtype) * whole(name), "model", axis=1, tiled=True)

        def scattered(x: jax.Array) -> jax.Array:
            return lax.psum_scatter(x, "model", scatter_dimension=1, tiled=True)

        def heads(x: jax.Array, name: str) -> jax.Array:
            made = x @ whole(name)
            return made.reshape(*made.shape[:2], -1, layer.head)

        first = normed(x, "first_norm")
        query, key, value = (heads(first, name) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + scattered(attended.reshape(*attended.shape[:2], -1) @ whole("out"))
        second = normed(x, "second_norm")
        hidden = jax.nn.silu(second @ whole("gate")) * (second @ whole("up"))
        x = x + scattered(hidden @ whole("down"))
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(x: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
        gradients = jax.grad(loss)(dict(zip(layer.shapes(), weights, strict=True)), x)
        return tuple(gradients[name] for name in layer.shapes())

    return step
