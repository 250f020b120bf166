"""Other configs of a Helion kernel that has none of its own.

Without a config, and without a TPU to tune on, Helion launches a kernel with a default that is made for no chip: small
blocks, of which a TPU's grid takes thousands. These are the configs that are worth compiling in its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

SIDES = (128, 256, 512, 1024, 2048)
"""Sizes of blocks in all dimensions."""

ROWS, COLUMNS = (8, 32, 128, 256, 512), (512, 1024, 2048, 4096)
"""Sizes of blocks in the last dimension but one, and in the last: of a TPU's tile the columns are contiguous."""

LARGEST = 1 << 20
"""Elements of a block: 4 MiB of float32, of which a pipeline holds two for each operand."""

MOST = 24
"""How many configs."""


def others(spec: Any, default: Any) -> list[tuple[str, Any]]:
    """Configs that differ from a default in blocks, and in how loops inside a grid step are written, with labels.

    Args:
        spec: Helion's ``ConfigSpec``: the dimensions that have blocks, their sizes and what blocks they allow.
        default: the ``helion.Config`` that is taken without further knowledge.
    """
    given: dict[str, Any] = dict(default.config)
    if not given.get("block_sizes"):
        return []
    limits = [(int(item.min_size), int(item.max_size)) for item in spec.block_sizes]
    loops = len(spec.grid_block_ids) < len(limits)
    found: dict[str, Any] = {}
    for sizes in block_sizes(limits):
        changes: dict[str, Any] = {"block_sizes": sizes}
        if loops:
            changes["pallas_loop_type"] = "emit_pipeline"
        if any(given.get(name) != value for name, value in changes.items()):
            found[", ".join(f"{name}={value}" for name, value in changes.items())] = type(default).from_dict(
                {**given, **changes}
            )
    return list(found.items())[:MOST]


def block_sizes(limits: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Blocks for dimensions of given (least, largest) blocks, the likely ones first, none twice."""
    count = len(limits)
    if count == 1:
        wanted = [[side] for side in (256, 512, 128, 64, 1024, 32, 2048, 16, 8, 4096, 8192, 16384)]
    else:
        pairs = sorted(itertools.product(ROWS, COLUMNS), key=lambda pair: abs(pair[0] * pair[1] - (LARGEST >> 2)))
        wanted = [
            *([side] * count for side in SIDES[1:4]),
            *([1] * (count - 2) + list(pair) for pair in pairs[:12]),
            *([1] + [side] * (count - 1) for side in SIDES if count > 2),
            *([side] * count for side in SIDES),
            *([1] * (count - 2) + list(pair) for pair in pairs[12:]),
        ]
    found: dict[tuple[int, ...], None] = {}
    for sizes in wanted:
        fitted = tuple(min(max(size, low), high) for size, (low, high) in zip(sizes, limits, strict=True))
        found[fitted] = None
    return [list(sizes) for sizes in found]
