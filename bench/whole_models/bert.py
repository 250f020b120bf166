"""A layer of BERT-large, trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from transformers.models.bert.modeling_bert import BertLayer

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a layer, and of its input."""

    width: int = 1024
    hidden: int = 4096
    heads: int = 16
    batch: int = 16
    length: int = 512
    epsilon: float = 1e-12

    def config(self) -> Any:
        config = transformers.BertConfig(
            hidden_size=self.width, intermediate_size=self.hidden, num_attention_heads=self.heads,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=self.epsilon,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        return config


SMALL = Sizes(width=128, hidden=96, heads=2, batch=2, length=128)


def layer(
    sizes: Sizes,
    weights: Weights,
    x: jax.Array,
    attend: Callable[..., jax.Array],
    drop: Callable[[jax.Array, int], jax.Array] = lambda made, _: made,
) -> jax.Array:
    """The mean square of a layer's result, float32 [].

    Args:
        attend: attention of queries, keys and values.
        drop: what becomes of what attention (1) and the MLP (2) add.
    """

    def own(name: str) -> tuple[jax.Array, jax.Array]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    width = sizes.width // sizes.heads
    heads = (parts.to_heads(x, w, width, b) for w, b in (own(f"attention.self.{n}") for n in ("query", "key", "value")))
    made = parts.from_heads(attend(*heads), *own("attention.output.dense"))
    x = parts.layer_norm(x + drop(made, 1), *own("attention.output.LayerNorm"), sizes.epsilon)
    hidden = parts.gelu(parts.linear(x, *own("intermediate.dense")))
    made = parts.linear(hidden, *own("output.dense"))
    x = parts.layer_norm(x + drop(made, 2), *own("output.LayerNorm"), sizes.epsilon)
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


def built(sizes: Sizes, small: bool, by_hand: Callable[..., jax.Array], draws: bool = False) -> Built:
    """Both sides; ``draws`` is as for ``Built``."""
    module = made(lambda: BertLayer(sizes.config()), small).train()
    x = torch.randn(sizes.batch, sizes.length, sizes.width, dtype=torch.float32 if small else torch.bfloat16)

    def function(x: torch.Tensor) -> torch.Tensor:
        result: Any = module(x)
        return (result[0] if isinstance(result, tuple) else result).float().square().mean()

    return Built(module, function, (x,), by_hand, draws=draws)


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    attend = functools.partial(parts.attention, causal=False, on_cpu=small)
    return built(sizes, small, lambda weights, x: layer(sizes, weights, x, attend))


CASES = (Case("bert_training", "BERT-large layer, training 16x512", True, build, 1.0),)
