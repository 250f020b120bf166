"""A Llama layer trained on two micro-batches in one step: the losses are summed."""

from __future__ import annotations

import dataclasses

import jax
import torch

from bench.whole_models import llama
from bench.whole_models.case import Built, Case, Weights

PARTS = 2


def build(small: bool) -> Built:
    full = llama.Sizes(width=2048, hidden=7168, heads=16, kv_heads=4, vocabulary=32000, batch=2)
    sizes = dataclasses.replace(llama.SMALL, layers=1) if small else full
    module, tokens = llama.model(sizes, small).train(), torch.stack([sizes.tokens(sizes.length) for _ in range(PARTS)])
    one = llama.Twin(sizes, small)

    def function(tokens: torch.Tensor) -> torch.Tensor:
        losses = [module(part, labels=part, use_cache=False).loss for part in tokens]
        return torch.stack(losses).sum()

    def by_hand(weights: Weights, tokens: jax.Array) -> jax.Array:
        first, *others = (one.loss(weights, tokens[at]) for at in range(PARTS))
        return sum(others, first)

    read = {"model.embed_tokens.weight": tokens.numel() * sizes.width * 2}
    return Built(module, function, (tokens,), by_hand, read=read)


CASES = (Case("llama_accumulation", "Llama layer of width 2048, training 2 times 2x2048", True, build, 1.0),)
