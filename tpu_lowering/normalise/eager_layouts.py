"""Results in eager's strides, where torch's meta functions and decompositions promise others.

Whoever looks at such a result through ``as_strided``, or asks for its strides, would get other elements than in eager.
``CORRECTED`` is the one list of these operators; a sweep over torch's operator database finds them. What the strides
are, eager says: it runs the operator on zeros that lie in memory as the arguments do.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from tpu_lowering import compat
from tpu_lowering.ir.programs import dense_order
from tpu_lowering.session import kept

aten = compat.aten
Decompositions = dict[Any, Callable[..., Any]]
"""By operator."""

CORRECTED: tuple[compat.OpOverload, ...] = (
    aten._batch_norm_with_update_functional.default,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit.no_stats,
    aten.addr.default,
    aten.channel_shuffle.default,
    aten.copysign.Tensor,
    aten.div.Tensor_mode,
    aten.floor_divide.default,
    aten.heaviside.default,
    aten.index.Tensor,
    aten.ldexp.Tensor,
    aten.logaddexp.default,
    aten.logical_and.default,
    aten.logical_or.default,
    aten.logical_xor.default,
    aten.max_unpool2d.default,
    aten.native_channel_shuffle.default,
    aten.native_dropout_backward.default,
    aten.roll.default,
    aten.xlogy.Tensor,
)

LARGEST = 1 << 20  # elements that eager is asked about at their true sizes
SIDE = 4  # the longest side of other tensors


def with_eagers_layouts(decompositions: Decompositions) -> Decompositions:
    """A table of decompositions with those of ``CORRECTED`` followed by a change of layout, where there is one."""
    return decompositions | {one: _corrected(one, decompositions.get(one)) for one in CORRECTED}


def _corrected(overload: compat.OpOverload, decomposition: Callable[..., Any] | None) -> Callable[..., Any]:
    running = threading.local()

    def corrected(*args: Any, **kwargs: Any) -> Any:
        if getattr(running, "self", False):
            return NotImplemented  # called below: the operator as it is
        running.self = True
        try:
            result = (decomposition or overload)(*args, **kwargs)
        finally:
            running.self = False
        tensors = result if isinstance(result, (tuple, list)) else (result,)
        orders = _orders(overload, args, kwargs)
        if orders is None:
            return result
        relaid = [_relaid(*each) for each in zip(tensors, orders, strict=True)]
        return type(result)(relaid) if isinstance(result, (tuple, list)) else relaid[0]

    return corrected


def _relaid(tensor: Any, order: tuple[int, ...] | None) -> Any:
    """A tensor, dense in a storage order of its dimensions; itself if it is."""
    if order is None or not isinstance(tensor, torch.Tensor):
        return tensor
    shape, stride = compat.example_sizes(tensor.shape), compat.example_sizes(tensor.stride())
    if shape is None or stride is None:
        return tensor
    long = [dim for dim in order if shape[dim] > 1]
    if [dim for dim in dense_order(shape, stride) or () if shape[dim] > 1] == long:
        return tensor
    dense = tensor.permute(order).clone(memory_format=torch.contiguous_format)
    return dense.permute([order.index(dim) for dim in range(len(order))])


class Strided(NamedTuple):
    """A tensor among a call's arguments."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def zeros(self, cut: Callable[[int], int]) -> torch.Tensor:
        """Zeros whose dimensions lie in the same order, those without stride expanded."""
        order = sorted(range(len(self.shape)), key=lambda dim: (-self.stride[dim], dim))
        dense = torch.zeros([cut(self.shape[dim]) if self.stride[dim] else 1 for dim in order], dtype=self.dtype)
        return dense.permute([order.index(dim) for dim in range(len(order))]).expand([*map(cut, self.shape)])


def _orders(overload: compat.OpOverload, args: Any, kwargs: Any) -> tuple[tuple[int, ...] | None, ...] | None:
    """The storage order of each of eager's results; None for what has none, or is not known."""
    try:
        given = tuple(map(_described, args)), tuple((name, _described(value)) for name, value in kwargs.items())
        unknown = any(isinstance(leaf, (torch.Tensor, torch.SymInt)) for leaf in compat.tree_leaves(given))
        return None if unknown else _eagers_orders(overload, *given)
    except TypeError:  # an argument without hash
        return None


def _described(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        shape, stride = compat.example_sizes(leaf.shape), compat.example_sizes(leaf.stride())
        return leaf if shape is None or stride is None else Strided(leaf.dtype, shape, stride)
    if isinstance(leaf, (list, tuple)):
        return tuple(map(_described, leaf))
    if isinstance(leaf, torch.SymInt):
        return leaf if (number := compat.example_sizes((leaf,))) is None else number[0]
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


@kept(1 << 12, "eager is run to see the strides it gives")
def _eagers_orders(overload: compat.OpOverload, args: Any, kwargs: Any) -> tuple[tuple[int, ...] | None, ...] | None:
    shapes = [leaf.shape for leaf in _tensors((args, kwargs))]
    whole = sum(map(math.prod, shapes)) <= LARGEST

    def cut(side: int) -> int:
        return side if whole else min(side, SIDE)

    def value(leaf: Any) -> Any:
        if isinstance(leaf, Strided):
            return leaf.zeros(cut)
        return tuple(map(value, leaf)) if isinstance(leaf, tuple) else leaf

    with compat.disable_current_modes(), torch.no_grad():
        try:
            result = overload(*map(value, args), **{name: value(given) for name, given in kwargs})
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # sizes were cut that belong to others
    results: Sequence[Any] = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(dense_order(x.shape, x.stride()) if isinstance(x, torch.Tensor) else None for x in results)


def _tensors(tree: Any) -> list[Strided]:
    if isinstance(tree, Strided):
        return [tree]
    return [leaf for branch in tree for leaf in _tensors(branch)] if isinstance(tree, tuple) else []
