"""Whole models, forward and backward, through the table.

The yardstick is the same model in float64. The relative error of each gradient may be at most ``SLACK``
times the worst that eager makes on any gradient in the same dtype (so for buffers and the loss), plus
``FLOOR``. That holds bfloat16 to what eager reaches, whatever the model does to rounding errors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.evaluate import compile_aot

SLACK = 2.0
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
TINY = 1e-30  # the norm of a truth that is all zeros (a running mean before training)


class Mlp(nn.Module):
    """Two layers with gelu, and cross entropy that ignores one label."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.down(F.gelu(self.up(x))), labels, ignore_index=3)


class Decoder(nn.Module):
    """One Llama-style layer by hand: RMS norm, rotary positions, causal attention, gated MLP."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(50, width, padding_idx=0)
        self.norm, self.post_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 64, bias=False), nn.Linear(width, 64, bias=False)
        self.down = nn.Linear(64, width, bias=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """x: [b, h, t, d]."""
        half = x.shape[-1] // 2
        frequency = 1e4 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.post_norm(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        logits = x @ self.embed.weight.T
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class ResNetBlock(nn.Module):
    """Stem with max pooling, one basic block with a strided shortcut, average pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.first, self.first_norm = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.second, self.second_norm = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.shortcut, self.shortcut_norm = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.stem_norm(self.stem(image))))
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y)) + self.shortcut_norm(self.shortcut(x))
        return F.cross_entropy(self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1)), labels)


class Loss(nn.Module):
    """A transformers model whose only result is a loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.loss(self.model, *inputs)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, use_cache=False, attn_implementation="eager",
    )  # fmt: skip

    def loss(model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, attention_mask=mask, labels=tokens).loss

    return Loss(LlamaForCausalLM(config), loss)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    def loss(model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pairs = mask.bool()[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        result = model(input_ids=tokens, attention_mask=pairs)
        return (result.last_hidden_state * mask[..., None]).pow(2).mean() + result.pooler_output.sum()

    return Loss(BertModel(config), loss)


def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (2, 12))


def padding_mask() -> torch.Tensor:
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    return mask


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "mlp": lambda: (Mlp(), (torch.randn(8, 16), torch.randint(0, 10, (8,)))),
    "decoder": lambda: (Decoder(), (tokens(),)),
    "llama": lambda: (llama(), (tokens(), padding_mask())),
    "bert": lambda: (bert(), (tokens(), padding_mask())),
    "resnet_training": lambda: (ResNetBlock(), (torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)))),
    "resnet_eval": lambda: (ResNetBlock().eval(), (torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)))),
}


def _step(model: nn.Module, run: Callable[..., torch.Tensor], inputs: Any) -> dict[str, torch.Tensor]:
    """Loss, gradients and buffers after one forward and backward."""
    loss = run(*inputs)
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {f"gradient of {k}": v.grad for k, v in model.named_parameters() if v.grad is not None}
    found |= {f"buffer {k}": v.detach() for k, v in model.named_buffers() if v.is_floating_point()}
    return found


def _in(dtype: torch.dtype, model: nn.Module, inputs: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A copy of the model, and its inputs, with floats in ``dtype``."""
    moved = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return copy.deepcopy(model).to(dtype), moved


def _errors(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """The relative error of each tensor, by the Euclidean norm."""
    return {
        key: float((found[key].double() - exact).norm() / exact.norm().clamp(min=TINY)) for key, exact in truth.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward_are_as_exact_as_eager(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model, inputs = _in(dtype, model, inputs)
    exact, exact_inputs = _in(torch.float64, model, inputs)
    eager, _ = _in(dtype, model, inputs)
    truth = _step(exact, exact, exact_inputs)
    theirs = _step(eager, eager, inputs)
    ours = _step(model, compile_aot(model), inputs)
    assert ours.keys() == theirs.keys() == truth.keys()
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
    worst: dict[str, float] = {}
    for key, error in _errors(theirs, truth).items():
        kind = key.split()[0]
        worst[kind] = max(worst.get(kind, 0.0), error)
    for key, error in _errors(ours, truth).items():
        allowed = SLACK * worst[key.split()[0]] + FLOOR[dtype]
        assert error <= allowed, f"{key}: relative error {error:.1e}, allowed {allowed:.1e}"
