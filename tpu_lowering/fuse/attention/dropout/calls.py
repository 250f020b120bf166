"""One call of the kernels of attention with dropped weights."""

from __future__ import annotations

import dataclasses

from tpu_lowering.fuse.attention.dropout.sizes import Block, Sizes
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.types import ElementType, TensorType, f32, i8


@dataclasses.dataclass(frozen=True)
class DroppedCall:
    """One specialisation of the kernels.

    Attributes:
        sizes: of the attention.
        block: what one step of the grid has.
        element: of the operands.
        scale, factor, is_causal, is_safe: see ``ir.dropped_attention``.
        vmem: bytes of VMEM that it asks for; None for what XLA gives each operation.
        where: the user's source line.
        chip: what it is for.
    """

    sizes: Sizes
    block: Block
    element: ElementType
    scale: float
    factor: float
    is_causal: bool
    is_safe: bool
    vmem: int | None
    where: str
    chip: Chip

    @property
    def heads(self) -> int:
        """How many heads of the queries one step has."""
        return self.block.shared * self.sizes.groups

    def rows(self, length: int, heads: int, width: int) -> TensorType:
        """The type of rows of so many heads."""
        apart = self.sizes.shared if self.block.is_apart else 1
        return self.element[(self.sizes.batch * apart, length, heads // apart * width)]

    @property
    def operands(self) -> dict[str, TensorType]:
        """Queries, keys, values, what is kept, and the mask if there is one."""
        sizes = self.sizes
        found = {
            "query": self.rows(sizes.queries, sizes.heads, sizes.width),
            "key": self.rows(sizes.keys, sizes.shared, sizes.width),
            "value": self.rows(sizes.keys, sizes.shared, sizes.value_width),
            "kept": i8[(sizes.batch, sizes.heads, sizes.queries, sizes.keys)],
        }
        return found if sizes.mask is None else {**found, "mask": f32[sizes.mask]}

    @property
    def result(self) -> TensorType:
        return self.rows(self.sizes.queries, self.sizes.heads, self.sizes.value_width)
