"""The plans of all regions of a graph."""

from __future__ import annotations

from torch import fx

from tpu_lowering.fuse.rows.planning import plan
from tpu_lowering.fuse.rows.products import plan_with_products
from tpu_lowering.fuse.space.row_plans import RowPlan
from tpu_lowering.fuse.space.row_regions import find_regions


def plans_of(graph: fx.Graph) -> list[list[RowPlan]]:
    """Plans of the regions that have blocks of two dimensions or more: a vector alone is no row among others. Of those
    that a region has, the one that may move the fewest bytes is first."""
    regions = [region for region in find_regions(graph) if len(region.space.sizes) >= 2]
    alone = [plan(region) for region in regions]
    made = {node for found in alone if found is not None for node in found.outputs}
    plans = [(plan_with_products(region, made), found) for region, found in zip(regions, alone, strict=True)]
    possible = [[found for found in pair if found is not None] for pair in plans]
    return [found for found in possible if found]
