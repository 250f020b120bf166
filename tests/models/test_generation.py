"""Greedy generation with a static key-value cache: one compiled decode step, the tokens and caches of eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import EncoderDecoderCache, StaticCache

from bench.zoo import MODELS, padding_mask, sounds, tokens
from tpu_lowering.backend import helion_tpu

STEPS = 12
PROMPT = 6
ROOM = 32  # of the cache; more than what is generated

DECODERS = ["llama", *(pytest.param(name, marks=pytest.mark.large) for name in ("qwen3", "gemma", "mixtral", "gpt2"))]
SEQUENCES = ["t5", *(pytest.param(name, marks=pytest.mark.large) for name in ("bart", "whisper"))]

Step = Callable[[torch.Tensor], torch.Tensor]


class Counted:
    """The backend, and how many graphs Dynamo gave it."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return helion_tpu(*args, **kwargs)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name].build().eval()


def greedy(step: Step, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [batch, STEPS] and their logits [batch, STEPS, vocabulary], from the prompt's next token on."""
    token, chosen, logits = first, [], []
    for _ in range(STEPS):
        logits.append(step(token))
        token = logits[-1].argmax(-1)
        chosen.append(token)
    return torch.cat(chosen, 1), torch.cat(logits, 1)


def decoding(model: nn.Module, prompt: torch.Tensor, compile_: Callable[..., Any]) -> tuple[Step, StaticCache, Any]:
    """One decode step over a cache that the prompt has filled, the cache, and the prompt's next token [batch, 1]."""
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    first = model(input_ids=prompt, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    def step(token: torch.Tensor) -> torch.Tensor:
        return model(input_ids=token, past_key_values=cache, use_cache=True).logits

    return compile_(step), cache, first


def compare(run: Callable[[Callable[..., Any]], tuple[Step, Any, torch.Tensor]]) -> None:
    backend = Counted()
    with torch.no_grad():
        step, cache, first = run(lambda step: step)
        expected, logits = greedy(step, first)
        mine, my_cache, my_first = run(lambda step: torch.compile(step, backend=backend, fullgraph=True))
        torch.testing.assert_close(my_first, first)
        found, my_logits = greedy(mine, my_first)
    assert backend.graphs == 1, f"expected one compilation for all steps, got {backend.graphs}"
    assert torch.equal(found, expected)
    torch.testing.assert_close(my_logits, logits)
    for layer, my_layer in zip(cache.layers, my_cache.layers, strict=True):
        torch.testing.assert_close((my_layer.keys, my_layer.values), (layer.keys, layer.values))
        assert int(my_layer.cumulative_length) == int(layer.cumulative_length)


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_equals_eager(name: str) -> None:
    model, prompt = build(name), tokens()[:, :PROMPT].contiguous()
    compare(lambda compile_: decoding(model, prompt, compile_))


@pytest.mark.parametrize("name", SEQUENCES)
def test_decoding_with_an_encoder_equals_eager(name: str) -> None:
    """The encoder runs in eager; a decode step attends to its result."""
    model = build(name)
    source = sounds()["input_features"] if name == "whisper" else tokens()
    mask = {} if name == "whisper" else {"attention_mask": padding_mask()}
    with torch.no_grad():
        encoded = model.get_encoder()(source, **mask)
    first = torch.full((source.shape[0], 1), model.config.decoder_start_token_id)

    def run(compile_: Callable[..., Any]) -> tuple[Step, StaticCache, torch.Tensor]:
        own = StaticCache(config=model.config, max_cache_len=ROOM)
        cross = StaticCache(config=model.config, max_cache_len=encoded.last_hidden_state.shape[1])
        caches = EncoderDecoderCache(own, cross)

        def step(token: torch.Tensor) -> torch.Tensor:
            outputs = model(
                encoder_outputs=encoded, decoder_input_ids=token, past_key_values=caches, use_cache=True, **mask
            )
            return outputs.logits

        begun = step(first).argmax(-1)  # fills the cross-attention's cache
        return compile_(step), own, begun

    compare(run)
