"""Two models of one layer each, for tests of what does not depend on how large a model is."""

from __future__ import annotations

import torch
from torch import nn

from bench import vision
from bench.zoo import VOCABULARY, Model, of


class Residual(nn.Module):
    """A residual block, average pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = vision.Residual(3, 16, 2), nn.Linear(16, 10)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float [n, 3, h, w] and labels int64 [n] to (loss [], logits [n, 10])."""
        logits = self.head(nn.functional.adaptive_avg_pool2d(self.block(images), 1).flatten(1))
        return nn.functional.cross_entropy(logits, labels), logits


SMALL = {
    "encoder": of(
        "DistilBert", "ForMaskedLM", vocab_size=VOCABULARY, dim=64, hidden_dim=128, n_layers=1, n_heads=4,
        max_position_embeddings=64, dropout=0.0, attention_dropout=0.0,
    ),
    "convolutions": Model(
        Residual, lambda: {"images": torch.randn(4, 3, 32, 32), "labels": torch.randint(0, 10, (4,))},
        lambda outputs: outputs[1], lambda outputs: outputs[0],
    ),
}  # fmt: skip
