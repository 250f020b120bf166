"""What is compared: a model in torch, and its twin, the same computation as a JAX engineer writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import torch
from torch import nn

Weights = dict[str, jax.Array]
"""Parameters and buffers by torch's names, in torch's layout."""


@dataclasses.dataclass(frozen=True)
class Built:
    """Both sides of a case, at one size.

    Attributes:
        module: holds the weights.
        function: of the inputs, in torch; its result is a tensor or a tuple of tensors, or a loss if it trains.
        inputs: what it takes.
        twin: the same in JAX, of the weights, the inputs and the caches. Its results are those of ``function``, and
            after them the caches' new values.
        caches: what ``function`` holds and writes.
        read: bytes that a call reads of weights and caches that it does not read whole, by name or by position.
        draws: whether the twin draws random numbers: it takes a key, uint32 [2], as its last argument.
    """

    module: nn.Module
    function: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]
    twin: Callable[..., Any]
    caches: tuple[torch.Tensor, ...] = ()
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    draws: bool = False

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name, each once."""
        return dict((*self.module.named_parameters(), *self.module.named_buffers()))

    def trained(self) -> list[str]:
        """The names of the parameters that get gradients."""
        return [name for name, value in self.module.named_parameters() if value.requires_grad]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and what is done with it.

    Attributes:
        name: of the case.
        note: sizes, in words.
        trains: whether the forward and the backward of a loss are compared, or a forward alone.
        build: both sides; ``small`` ones have random weights in float32 and run on the CPU, others have bfloat16
            weights that nothing has written.
        limit: what the ratio of our bytes to the twin's is held against.
    """

    name: str
    note: str
    trains: bool
    build: Callable[[bool], Built]
    limit: float = 1.05


def made(build: Callable[[], nn.Module], small: bool) -> nn.Module:
    """A module: with random weights in float32, or in bfloat16 with weights of undefined values."""
    if small:
        return build()
    with torch.device("meta"):
        module = build()
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    buffers = dict(module.named_buffers())
    module = module.to_empty(device="cpu")  # memory that nothing is written to takes no room
    for name, value in module.named_buffers():  # what is made of whole numbers and angles keeps its type
        assert value.dtype == buffers[name].dtype
    return module


def flat(results: Any) -> Iterator[Any]:
    """The arrays or tensors of a result, in order."""
    if isinstance(results, (tuple, list)):
        for result in results:
            yield from flat(result)
    else:
        yield results


def prefill(module: Any, tokens: torch.Tensor, twin: Callable[..., Any], read: dict[str, int] | None = None) -> Built:
    """A decoder of transformers over whole sequences: logits of the last token, and each layer's keys and values."""

    def function(tokens: torch.Tensor) -> Any:
        found = module(tokens, use_cache=True, logits_to_keep=1)
        return found.logits, [(layer.keys, layer.values) for layer in found.cache.layers]

    return Built(module, function, (tokens,), twin, read=read or {})
