"""Blocks of a Helion kernel that end where their dimensions end.

A block that is larger than its dimension is padded inside the kernel, and a CPU computes the padding too. The same
kernel with a smaller block takes the same steps and computes the same values, if nothing in it depends on the size of
a block. That is known of the operations named here; a kernel with any other keeps its blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpu_lowering import compat

SHAPES = {"load": 1, "store": 1, "full": 0, "tile_index": 0, "tile_begin": 0, "tile_id": 0, "tile_count": 0}
"""Helion's operations that take sizes of blocks, and which of their arguments holds them: a shape, or an index."""

NUMBERS = frozenset(("tile_begin", "tile_id", "tile_count"))
"""Those of them whose results are numbers that a smaller block does not change."""

STRUCTURE = frozenset((
    *SHAPES, "_host_tensor", "_get_symnode", "_new_var", "_phi", "_for_loop", "_if", "_mask_to", "subscript", "getitem",
))  # fmt: skip
"""Helion's operations that treat each element of a block alike; ``_mask_to`` is what keeps padding out of sums."""

aten = compat.aten

OPERATORS = frozenset((
    aten.sum.default, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.mm.default, aten.addmm.default,
    aten.bmm.default, aten.baddbmm.default, aten.permute.default, aten.unsqueeze.default, aten.scalar_tensor.default,
    aten.sym_size.int,
))  # fmt: skip
"""Torch's operators of which the same holds, beside pointwise ones."""


def fitted(bound: Any, config: Any) -> Any | None:
    """The config with smaller blocks; None if none can be smaller, or if the kernel may depend on their sizes.

    Args:
        bound: a ``helion.Kernel`` bound to arguments.
        config: the ``helion.Config`` it runs with.
    """
    given = dict(config.config)
    sizes, extents = given.get("block_sizes") or [], compat.helion_extents(bound)
    smaller = [
        size if extent is None else min(size, 1 << (extent - 1).bit_length())  # Helion takes powers of two
        for size, extent in zip(sizes, extents, strict=False)
    ]
    if smaller == list(sizes) or not all(map(_is_known, compat.helion_nodes(bound))):
        return None
    return type(config).from_dict({**given, "block_sizes": smaller})


def _is_known(node: fx.Node) -> bool:
    """Whether a node computes the same in blocks of any size, and is given a size only where it means a shape."""
    if node.op != "call_function":
        return True
    target: Any = node.target
    if isinstance(target, compat.OpOverload):
        known = target in OPERATORS or torch.Tag.pointwise in target.tags
    else:
        known = target.__name__ in STRUCTURE
    given: list[fx.Node] = []
    shape = SHAPES.get(target.__name__)
    compat.map_arg([argument for at, argument in enumerate(node.args) if at != shape], given.append)
    return known and not any(map(_is_size, given))


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a number that may be the size of a block."""
    return isinstance(node.meta.get("val"), torch.SymInt) and getattr(node.target, "__name__", "") not in NUMBERS
