"""Two small networks in plain torch.nn: a residual classifier and a U-shaped segmenter, both with BatchNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def convolution(width: int, wide: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the image's size but for the stride, and BatchNorm."""
    return nn.Sequential(nn.Conv2d(width, wide, size, stride, size // 2, bias=False), nn.BatchNorm2d(wide))


class Residual(nn.Module):
    """Two convolutions and a shortcut: [n, width, h, w] to [n, wide, h / stride, w / stride]."""

    def __init__(self, width: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, wide, 3, stride), convolution(wide, wide, 3)
        self.shortcut = nn.Identity() if stride == 1 and width == wide else convolution(width, wide, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem with max pooling, three residual blocks, average pooling and a classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 16, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float [n, 3, h, w] and labels int64 [n] to (loss [], logits [n, classes])."""
        x = self.blocks(self.stem(images))
        logits = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return F.cross_entropy(logits, labels), logits


def double(width: int, wide: int) -> nn.Sequential:
    """Two convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(convolution(width, wide, 3), nn.ReLU(), convolution(wide, wide, 3), nn.ReLU())


class UNet(nn.Module):
    """Two levels down by pooling and up again, one by interpolation and one by a transposed convolution."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.outer, self.inner, self.bottom = double(3, 16), double(16, 32), double(32, 64)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.inner_up, self.outer_up = double(64, 32), double(48, 16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float [n, 3, h, w] and labels int64 [n, h, w] to (loss [], logits [n, classes, h, w])."""
        outer = self.outer(images)
        inner = self.inner(F.max_pool2d(outer, 2))
        x = self.up(self.bottom(F.max_pool2d(inner, 2)))
        x = self.inner_up(torch.cat([x, inner], 1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        logits = self.head(self.outer_up(torch.cat([x, outer], 1)))
        return F.cross_entropy(logits, labels), logits
