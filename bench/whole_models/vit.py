"""ViT-L: the embedding of patches and a layer, forward and trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from jax import lax

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made

LANES = 128


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a model, and of its images."""

    width: int = 1024
    hidden: int = 4096
    heads: int = 16
    side: int = 224
    patch: int = 16
    batch: int = 16
    epsilon: float = 1e-12

    def config(self) -> Any:
        attention: dict[str, Any] = {"attn_implementation": "sdpa"}
        return transformers.ViTConfig(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            num_hidden_layers=1, image_size=self.side, patch_size=self.patch, layer_norm_eps=self.epsilon,
            **attention,
        )  # fmt: skip


SMALL = Sizes(width=128, hidden=96, heads=2, side=24, patch=8, batch=2)


def embedded(sizes: Sizes, weights: Weights, pixels: jax.Array) -> jax.Array:
    """[batch, 1 + patches, width] of [batch, 3, side, side]."""
    own, patch = parts.subset(weights, "embeddings."), sizes.patch
    kernel, bias = (own[f"patch_embeddings.projection.{name}"] for name in ("weight", "bias"))
    rows = pixels.reshape(sizes.batch, 3, -1, patch, sizes.side).transpose(0, 2, 4, 1, 3)
    rows = rows.reshape(-1, sizes.side, 3 * patch)  # rows of patches: their colours and lines are channels
    kernel = kernel.reshape(sizes.width, 3 * patch, patch)
    made = lax.conv_general_dilated(rows, kernel, (patch,), "VALID", dimension_numbers=("NWC", "OIW", "NWC"))
    made = made.reshape(sizes.batch, -1, sizes.width) + bias
    first = jnp.broadcast_to(own["cls_token"], (sizes.batch, 1, sizes.width))
    return jnp.concatenate((first, made), 1) + own["position_embeddings"]


def twin(sizes: Sizes, on_cpu: bool, weights: Weights, pixels: jax.Array) -> jax.Array:
    """[batch, 1 + patches, width]: what the last norm gives."""

    def own(name: str) -> tuple[jax.Array, jax.Array]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    x = embedded(sizes, weights, pixels)
    length, width = x.shape[1], sizes.width // sizes.heads
    hidden = parts.layer_norm(x, *own("layers.0.layernorm_before"), sizes.epsilon)
    hidden = jnp.pad(hidden, ((0, 0), (0, -length % LANES), (0, 0)))
    query, key, value = (
        parts.to_heads(hidden, weight, width, bias)
        for weight, bias in (own(f"layers.0.attention.{name}_proj") for name in ("q", "k", "v"))
    )
    attended = parts.attention(query, key, value, causal=False, on_cpu=on_cpu, counted=length, narrow=True)
    x = x + parts.from_heads(attended[:, :, :length], *own("layers.0.attention.o_proj"))
    hidden = parts.layer_norm(x, *own("layers.0.layernorm_after"), sizes.epsilon)
    hidden = parts.gelu(parts.linear(hidden, *own("layers.0.mlp.fc1")))
    x = x + parts.linear(hidden, *own("layers.0.mlp.fc2"))
    return parts.layer_norm(x, *own("layernorm"), sizes.epsilon)


def built(small: bool, trains: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.ViTModel(sizes.config(), add_pooling_layer=False), small).train(trains)
    shape = (sizes.batch, 3, sizes.side, sizes.side)
    pixels = torch.randn(shape, dtype=torch.float32 if small else torch.bfloat16)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        return module(pixels).last_hidden_state

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return forward(pixels).float().square().mean()

    def by_hand(weights: Weights, pixels: jax.Array) -> jax.Array:
        return twin(sizes, small, weights, pixels)

    def loss_by_hand(weights: Weights, pixels: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(by_hand(weights, pixels).astype(jnp.float32)))

    return Built(module, loss, (pixels,), loss_by_hand) if trains else Built(module, forward, (pixels,), by_hand)


def _case(name: str, note: str, trains: bool) -> Case:
    build: Callable[[bool], Built] = lambda small: built(small, trains)  # noqa: E731
    return Case(name, note, trains, build, 1.0)


CASES = (
    _case("vit_forward", "ViT-L, patches and 1 layer, forward, 16 images of 224", False),
    _case("vit_training", "ViT-L, patches and 1 layer, training, 16 images of 224", True),
)
