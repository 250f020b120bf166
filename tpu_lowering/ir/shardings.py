"""How a tensor lies on a mesh, and the node that says it of a value in a graph.

``Axes`` say for each dimension which mesh axes it is split along, outermost first: ``(("data",), ())`` is a matrix
whose rows are split along ``data`` and whose columns are whole. Dimensions at the end that are whole may be left out.
"""

from __future__ import annotations

from typing import Any

import jax
import torch
from torch import fx

from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.options import Axes, Options

KEY = "axes"
"""Key of a placeholder's metadata: its ``Axes``; a placeholder without is whole on each device."""

SAID_BY = "said_by"
"""Key of a node's metadata: what lies so, and which of the user's names says it, in words."""


def constrain(x: torch.Tensor, axes: Axes) -> torch.Tensor:
    """A value that lies on the program's mesh as ``axes`` say; the value itself is unchanged.

    Args:
        x: any shape and dtype.
        axes: how it lies.

    Returns:
        A new tensor with the same elements.
    """
    return x.clone()


def is_partitioned() -> bool:
    """Whether JAX is tracing a program for a mesh."""
    return not jax.sharding.get_abstract_mesh().empty


def spec(axes: Axes) -> jax.sharding.PartitionSpec:
    """Axes as JAX writes them."""
    return jax.sharding.PartitionSpec(*(each or None for each in axes))


def axes_in(sharding: Any) -> Axes | None:
    """Axes that a sharding of JAX's names; None for one that names none."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return None
    dimensions = [() if each is None else (each,) if isinstance(each, str) else each for each in sharding.spec]
    valid = all(isinstance(each, tuple) for each in dimensions)
    return trimmed(tuple(tuple(map(str, each)) for each in dimensions)) if valid else None


def permuted(axes: Axes, order: tuple[int, ...] | None) -> Axes:
    """The axes of a tensor, from those of its transpose whose dimension ``i`` is dimension ``order[i]`` of it."""
    if order is None:
        return axes
    given = padded(axes, len(order))
    return trimmed(tuple(given[order.index(dimension)] for dimension in range(len(order))))


def axes_of(node: fx.Node) -> Axes | None:
    """How a node was said to lie: an argument, or what ``constrain`` gives; None if nothing is said."""
    if node.target is constrain:
        axes: Any = node.args[1]
        return axes
    return node.meta.get(KEY) if node.op == "placeholder" else None


def mesh_of(options: Options) -> Mesh | None:
    """The mesh that programs run on; None for one device."""
    if not options.mesh:
        return None
    axes, sizes = zip(*options.mesh, strict=True)
    mesh = Mesh(axes, sizes, ())
    return Mesh(axes, sizes, tuple(range(mesh.count)))


def padded(axes: Axes, ndim: int) -> Axes:
    """The same with an entry for each dimension."""
    return (*axes, *((),) * (ndim - len(axes)))


def trimmed(axes: Axes) -> Axes:
    """The same without whole dimensions at the end, so that equal shardings are equal values."""
    last = max((at for at, each in enumerate(axes) if each), default=-1)
    return tuple(axes[: last + 1])


def what_does_not_fit(axes: Axes, shape: tuple[int, ...], mesh: Mesh) -> str | None:
    """Why a tensor of a shape cannot lie so, worded "expected X, got Y"; None if it can."""
    if len(axes) > len(shape):
        return f"expected axes for at most {len(shape)} dimensions, got {len(axes)} for the shape {list(shape)}"
    for dimension, (each, size) in enumerate(zip(axes, shape, strict=False)):
        if size % mesh.size(each):
            along = " and ".join(map(repr, each))
            return (
                f"expected a multiple of {mesh.size(each)}, which is how many devices stand along {along}, as the size "
                f"of dimension {dimension}, got {size}"
            )
    return None
