"""Masks as splash attention takes them.

It asks a mask for its values block by block, and keeps those in which some queries see some keys, equal ones once. What
also has a function of positions is computed in the kernel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from tpu_lowering.fuse.attention.static_masks import StaticMask


@dataclasses.dataclass(frozen=True)
class InMemory(masks.Mask):
    """A mask whose blocks are fetched; of a band no more than one block is ever computed."""

    mask: StaticMask

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.queries, self.mask.keys

    def __getitem__(self, idx: Any) -> np.ndarray[Any, Any]:
        return self.mask.part(*idx)


def splash_mask(mask: StaticMask | None, lengths: tuple[int, int], by_position: bool) -> masks.Mask:
    """A mask for splash attention.

    Args:
        mask: None for one that shows all keys.
        lengths: of queries and keys.
        by_position: whether the kernel computes it; it has to be a band.
    """
    if mask is None:
        return masks.FullMask(lengths)
    if not by_position:
        return InMemory(mask)
    if mask.is_causal:
        return masks.CausalMask(lengths)
    return masks.LocalMask(lengths, (None if mask.first is None else -mask.first, mask.last), 0)
