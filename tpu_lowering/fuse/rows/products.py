"""Matrix products in a kernel: of rows that are reduced, and side by side with others.

XLA fuses pointwise work into the product that it follows, and no more: rows of a product that are normalised are
written and read again, and of two products that are multiplied, as in a gated layer, one is::

    gate = aten.mm(x, w1)
    up = aten.mm(x, w2)
    mul = aten.mul(aten.silu(gate), up)

One kernel takes blocks of ``x``, ``w1`` and ``w2``, and writes ``mul``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.rows.planning import computed, least_bytes, plan_of
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_plans import Product, RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import RowRegion, matrix_product, shape_of
from tpu_lowering.fuse.space.spaces import Space, dims_of
from tpu_lowering.fuse.xla.bytes import bytes_by_xla, ends_pass
from tpu_lowering.fuse.xla.layouts import bytes_of
from tpu_lowering.ir import graphs

aten = compat.aten

MULTIPLIED = frozenset((torch.float32, torch.bfloat16))
"""Element types that a kernel multiplies."""


def plan_with_products(region: RowRegion, made: Collection[fx.Node]) -> RowPlan | None:
    """The plan for a region and the matrix products that only it uses; None if there are none, or if a kernel that
    fetches everything once would move no fewer bytes than XLA, with or without a kernel for the rows.

    Args:
        region: the region.
        made: results of kernels that are planned. XLA fuses other pointwise work into a product's factors, a kernel
            would have it written.
    """
    whole = plan_of(region, computed(region))
    if whole is None:
        return None
    outside: dict[fx.Node, set[RowOperand]] = {}
    for (_, used), operand in whole.bound.items():
        outside.setdefault(used, set()).add(operand)
    inside = set(whole.members)
    given = {used: operands.pop() for used, operands in outside.items() if len(operands) == 1}
    given = {used: operand for used, operand in given.items() if inside.issuperset(used.users)}
    products = {used: _product(region.space, used, operand, made) for used, operand in given.items()}
    found = {used: product for used, product in products.items() if product is not None}
    if not found:
        return None
    accesses = {used: given[used].access for used in found} | region.accesses
    bound = {key: operand for key, operand in whole.bound.items() if key[1] not in found}
    for used, product in found.items():
        bound |= {(used, operand.node): operand for operand in product.operands()}
    taken = dataclasses.replace(region, accesses=accesses)
    plan = RowPlan(taken, (*found, *whole.members), bound, whole.outputs, found)
    return plan if least_bytes(plan) < bytes_apart(plan) else None


def bytes_apart(plan: RowPlan) -> int:
    """What products and the rest would move as XLA runs them, or with a kernel for the rest: each product is written
    and read; if the rest is pointwise work, that of the largest product is fused into it."""
    rest = [member for member in plan.members if member not in plan.products]
    whole = plan_of(plan.region, rest)
    assert whole is not None
    factors = {operand for product in plan.products.values() for operand in product.operands()}
    written = sum(map(bytes_of, plan.products)) + sum(bytes_of(operand.node) for operand in factors)
    if any(ends_pass(plan.region, member) for member in rest):
        return written + min(bytes_by_xla(whole), least_bytes(whole))
    return written + least_bytes(whole) - 2 * max(map(bytes_of, plan.products))


def _product(space: Space, used: fx.Node, operand: RowOperand, made: Collection[fx.Node]) -> Product | None:
    """A plan's operand as a matrix product, along all dimensions of the plan's space."""
    node = matrix_product(used)
    if node is None or operand.node is not used:
        return None
    if dims_of(operand.access) != frozenset(space.sizes) or len(operand.access[-1]) != 1:
        return None
    given = graphs.bound(node)
    left, right = (given["self"], given["mat2"]) if node.target is aten.mm.default else (given["mat1"], given["mat2"])
    bias = given["self"] if node.target is aten.addmm.default else None
    if (given.get("beta", 1), given.get("alpha", 1)) != (1, 1) or left is right:
        return None
    if (bias is not None and shape_of(bias) != shape_of(node)[1:]) or left.meta["val"].dtype not in MULTIPLIED:
        return None
    if _is_transposed(left) or not (_is_written(left, made) and _is_written(right, made)):
        return None
    transposed = _is_transposed(right)
    right = right.args[0] if transposed else right
    *rows, column = [(dim, space.sizes[dim]) for run in operand.access for dim in run]
    summed = (None, shape_of(left)[1])
    return Product(
        node,
        RowOperand(left, tuple((dim,) for dim, _ in rows), (*rows, summed)),
        RowOperand(right, ((column[0],),), (column, summed) if transposed else (summed, column)),
        transposed,
        None if bias is None else RowOperand(bias, ((column[0],),)),
    )


def _is_written(factor: fx.Node, made: Collection[fx.Node]) -> bool:
    """Whether a factor lies in memory before the product runs."""
    if _is_transposed(factor) or graphs.is_call(factor, aten.reshape.default):
        source = factor.args[0]
        return factor in made or not isinstance(source, fx.Node) or _is_written(source, made)
    kind = kind_of(factor)
    return factor in made or kind is None or kind.name != "pointwise"


def _is_transposed(node: fx.Node) -> bool:
    return graphs.is_call(node, aten.permute.default) and [dim % 2 for dim in node.args[1]] == [1, 0]  # type: ignore[union-attr]
