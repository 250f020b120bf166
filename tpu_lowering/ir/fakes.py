"""Values of nodes: fake tensors, which have a layout and no elements.

Torch takes a call on fake tensors through its dispatcher, twenty times what one costs that is made of its layout. Of
layers that are equal all but the first are made so: calls of one target on operands that lie alike give results that
lie alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import arguments
from tpu_lowering.ir.boxes import read_box, write_box
from tpu_lowering.session import Cache

CPU = torch.device("cpu")


class Layout(NamedTuple):
    """Where the elements of a tensor lie; all are numbers.

    Attributes:
        dtype: of the elements.
        shape: its sizes.
        stride: as many.
        offset: of the first element in memory.
        device: where it is.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    device: torch.device = CPU

    @staticmethod
    def of(value: Any) -> Layout:
        """That of a tensor."""
        return Layout(value.dtype, value.shape, value.stride(), value.storage_offset(), value.device)

    def fake(self, mode: Any) -> torch.Tensor:
        """A fake tensor in memory of its own; views count from ``offset``."""
        with compat.no_dispatch():
            if self.offset == 0:
                value = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
            else:
                last = sum(max(n - 1, 0) * step for n, step in zip(self.shape, self.stride, strict=True))
                span = self.offset + 1 + last
                value = torch.empty(span, dtype=self.dtype, device="meta")
                value = value.as_strided(self.shape, self.stride, self.offset)
            return compat.FakeTensor(mode, value, self.device)


class Values:
    """The values of a graph's nodes: one fake tensor a layout, all of one mode. What a value is the value of, only the
    node says that has it.

    Attributes:
        mode: the fake mode.
    """

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self._known: dict[Layout, torch.Tensor] = {}

    def of(self, layout: Layout) -> torch.Tensor:
        """The fake tensor of a layout."""
        if layout not in self._known:
            self._known[layout] = layout.fake(self.mode)
        return self._known[layout]


_inferred: Cache[Hashable, Layout | tuple[Layout, ...]] = Cache(
    "ir.fakes.inferred", 1 << 14, "torch takes some tenths of a millisecond to infer one; some 1 KiB each"
)


def infer(values: Values, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The fake value of a call on nodes."""
    key = _key(values.mode, target, args, kwargs)
    known = None if key is None else _inferred.get(key)
    if known is not None:
        return values.of(known) if isinstance(known, Layout) else tuple(map(values.of, known))
    given, keywords = compat.map_arg((tuple(args), kwargs), lambda node: node.meta["val"])
    if target is operator.getitem:
        return given[0][given[1]]
    with values.mode, torch.no_grad():
        result = target(*given, **keywords)
    layouts = None if key is None else _layouts(result)
    if layouts is not None:
        _inferred.put(key, layouts)
    return result


class _Unknown(Exception):
    """A value of which a layout does not say all."""


def _key(mode: Any, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Hashable | None:
    """What the layout of a call's result depends on; None if that is more than can be said, as for operators of the
    user's own, whose fake implementation may be another one tomorrow."""
    is_torchs = isinstance(target, compat.OpOverload) and target.namespace in ("aten", "prims")
    if mode.shape_env is not None or not (is_torchs or target in (read_box, write_box)):
        return None
    try:
        described = (_described(given, _layout) for given in (args, *kwargs.items()))
        return (target, torch.get_default_dtype(), *described)
    except _Unknown:
        return None


def _layouts(result: Any) -> Layout | tuple[Layout, ...] | None:
    """The layout of a tensor, or of each of a tuple; None of anything else."""
    try:
        return tuple(map(_layout, result)) if type(result) is tuple else _layout(result)
    except _Unknown:
        return None


def _layout(value: Any) -> Layout:
    is_plain = isinstance(value, compat.FakeTensor) and value.layout == torch.strided and value.constant is None
    if not is_plain or value.is_conj() or value.is_neg():
        raise _Unknown
    return Layout.of(value)


def by_type(value: Any) -> Hashable:
    """A key of nested arguments in which a node counts by the dtype and shape of its value."""
    return _described(value, _type)


def _described(value: Any, of: Callable[[Any], Hashable]) -> Hashable:
    """A key of nested arguments in which a node counts by what is said of its value."""
    if isinstance(value, fx.Node):
        return of(value.meta.get("val"))
    if isinstance(value, (list, tuple)):
        return (list, *(_described(item, of) for item in value))
    if isinstance(value, dict):
        return (dict, *(_described(item, of) for item in value.items()))
    return arguments.key(value)


def _type(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape)
    return (tuple, *map(_type, value)) if isinstance(value, (list, tuple)) else arguments.key(value)
