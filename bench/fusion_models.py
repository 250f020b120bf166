"""Training steps of models, for the tables on fusion: forward and backward, bfloat16, random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import nn

from bench.programs import captured_training
from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.observers import Observer
from tpu_lowering.runtime.aot.capture import Captured
from tpu_lowering.runtime.aot.program import TpuProgram


def bert() -> tuple[nn.Module, torch.Tensor]:
    """Two layers of BERT, 8 by 512 tokens."""
    config = transformers.BertConfig(
        hidden_size=768, num_hidden_layers=2, num_attention_heads=6, intermediate_size=3072, vocab_size=30592,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config), torch.zeros(8, 512, dtype=torch.int64)


def decoder() -> tuple[nn.Module, torch.Tensor]:
    """Two layers of a Llama-style decoder, as the demo's but wider, 4 by 1024 tokens."""
    config = transformers.LlamaConfig(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8, intermediate_size=2816,
        vocab_size=32000, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), torch.zeros(4, 1024, dtype=torch.int64)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "BERT, training step": bert,
    "decoder, training step": decoder,
}
GOAL = 0.75


def captured_step(name: str, target: Chip, fuse: str, observers: Sequence[Observer] = ()) -> list[Captured]:
    """The forward and the backward of a model's loss, with generated kernels ("tpu") or without ("never")."""
    model, tokens = MODELS[name]()

    def loss(model: nn.Module) -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    return captured_training(model.to(torch.bfloat16), loss, target, fuse, observers)


def training_programs(name: str, target: str, fuse: str) -> list[TpuProgram]:
    """The same, compiled."""
    chosen = chips.find(target)
    return [aot.compile_captured(one, chosen, True, simulate=False) for one in captured_step(name, chosen, fuse)]
