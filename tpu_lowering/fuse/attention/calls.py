"""One call of an attention kernel, and what is added to its scores."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tpu_lowering.fuse.attention.blocks import ROWS, Blocks, rounded
from tpu_lowering.fuse.attention.static_masks import StaticMask
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.types import ElementType, TensorType, f32


@dataclasses.dataclass(frozen=True)
class Bias:
    """What one operand adds to the scores; see ``attention.masks.Term``.

    Attributes:
        value, where: as there.
        shape: of the operand, with as many dimensions as the scores.
    """

    value: float | None
    where: bool
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One specialisation of a kernel.

    Attributes:
        query, key, value: types [heads, length, width].
        scale: what the products of queries and keys are multiplied by; positive.
        blocks: sizes of blocks.
        vmem: bytes of VMEM that it asks for; None for what XLA gives each operation.
        where: the user's source line.
        chip: what it is for.
        mask: which keys are seen; None for all.
        gives_logsumexp: whether it has a second result, f32 [heads, queries].
        leading: sizes of the scores before the last two, for biases; their product is the heads.
        biases: what is added to the scores.
        bias_types: their types.
        narrow: whether the biases do nothing but hide keys, so that any element type holds them.
        added: the element type that flash attention is given them in, together.
        excludes: whether the biases may be -inf.
        outweighs: whether they may be as large in finite numbers, so that nothing else is left of a score.
        empty: the result for a query that no key is left of.
        soft_cap: see ``attention.sites.Attention``.
        length_minor: see ``attention.blocks.Heads``; splash attention's alone.
        together: whether rows have batch and heads as one size, and not ``leading``.
    """

    query: TensorType
    key: TensorType
    value: TensorType
    scale: float
    blocks: Blocks
    vmem: int | None
    where: str
    chip: Chip
    mask: StaticMask | None = None
    gives_logsumexp: bool = False
    leading: tuple[int, ...] = ()
    biases: tuple[Bias, ...] = ()
    bias_types: tuple[TensorType, ...] = ()
    narrow: bool = False
    added: ElementType = f32
    excludes: bool = False
    outweighs: bool = False
    empty: float = 0.0
    soft_cap: float | None = None
    length_minor: tuple[bool, bool, bool] = ROWS
    together: bool = True

    @property
    def groups(self) -> int:
        """How many heads of the queries share one head of the keys."""
        return self.query.shape[0] // self.key.shape[0]

    @property
    def outer(self) -> tuple[int, ...]:
        """What rows and the result have before their last two sizes."""
        return self.query.shape[:1] if self.together else self.leading

    @property
    def shared(self) -> tuple[int, ...]:
        """``outer`` of the keys: each of the heads that some queries share once."""
        return (*self.outer[:-1], self.outer[-1] // self.groups)

    @property
    def lengths(self) -> tuple[int, int]:
        """Lengths of queries and keys that the kernel runs with."""
        return rounded(self.query.shape[1]), rounded(self.key.shape[1])

    @property
    def result(self) -> TensorType:
        return self.query.element[(*self.query.shape[:2], self.value.shape[2])]

    @property
    def logsumexp(self) -> TensorType:
        return f32[self.query.shape[:2]]


def added_by(call: AttentionCall, biases: Sequence[jax.Array]) -> jax.Array:
    """All biases as one, float32, with as many dimensions as the scores."""

    def one(bias: Bias, given: jax.Array) -> jax.Array:
        given = given.reshape(bias.shape)
        if bias.value is None:
            return given.astype(jnp.float32)
        return jnp.where(given == bias.where, bias.value, 0.0).astype(jnp.float32)

    return functools.reduce(jnp.add, map(one, call.biases, biases))


def visible(call: AttentionCall, added: jax.Array) -> jax.Array:
    """Which keys each query may see, by the mask and by what is added: bool, of the scores' shape or broadcasting."""
    seen = added > -jnp.inf
    return seen if call.mask is None else seen & call.mask.array
