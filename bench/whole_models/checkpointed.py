"""Two Llama layers trained with checkpoints: a layer's backward computes its forward again."""

from __future__ import annotations

import dataclasses

import jax
import torch

from bench.whole_models import llama
from bench.whole_models.case import Built, Case, Weights

FULL = llama.Sizes(width=2048, hidden=7168, heads=16, kv_heads=4, layers=2, vocabulary=32000)


@dataclasses.dataclass(frozen=True)
class Twin(llama.Twin):
    """A decoder that keeps what goes into its layers, and nothing of what is in them."""

    def layer(self, x: jax.Array, own: Weights) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.checkpoint(super().layer)(x, own)


def build(small: bool) -> Built:
    sizes = llama.SMALL if small else FULL
    module, tokens = llama.model(sizes, small).train(), sizes.tokens(sizes.length)
    module.gradient_checkpointing_enable({"use_reentrant": False})
    # From 5.25 a layer of transformers sets a variable of its own while it runs, and puts it back.
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True

    def function(tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens, labels=tokens, use_cache=False).loss

    read = {"model.embed_tokens.weight": tokens.numel() * sizes.width * 2}
    return Built(module, function, (tokens,), Twin(sizes, small).loss, read=read)


CASES = (Case("llama_checkpointed", "Llama of width 2048, 2 checkpointed layers, training 4x2048", True, build, 1.0),)
