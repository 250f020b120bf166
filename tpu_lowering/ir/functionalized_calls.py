"""Calls of operators that write to arguments, in the functional forms that torch gives them: decoded and encoded.

==========================================================  =======================================================
``auto_functionalized_v2(op, _x_base_index=0, ..., _all_bases=[b])``  written arguments are views of bases
``auto_functionalized(op, x=..., out=b)``                             the arguments themselves are the bases
==========================================================  =======================================================

Both return the operator's own results, then the bases' new values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.types import TensorType

aten = compat.aten

SLICE = ("slice_dim", "slice_start", "slice_end")
STRIDED = ("size", "stride", "storage_offset")
DESCRIBED = ("size", "dtype", "device")


@dataclasses.dataclass(frozen=True)
class BaseView:
    """What a written argument is of a base.

    Attributes:
        base: the base's position.
        how: all of it; ``aten.slice`` of it, or ``aten.as_strided`` of it.
        numbers: numbers or nodes: dimension, start and end; or sizes, strides and the offset; none for all of it.
    """

    base: int
    how: Literal["whole", "slice", "strided"]
    numbers: tuple[Any, ...] = ()

    @property
    def given(self) -> tuple[Any, ...]:
        """The numbers as the operator takes them."""
        ndim = len(self.numbers) // 2
        whole = self.how != "strided"
        return self.numbers if whole else (list(self.numbers[:ndim]), list(self.numbers[ndim:-1]), self.numbers[-1])

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """The view of a tensor."""
        if self.how == "slice":
            return aten.slice.Tensor(base, *self.given)
        return aten.as_strided.default(base, *self.given) if self.how == "strided" else base

    def read(self, base: fx.Node) -> fx.Node:
        """The argument's value, given the base's."""
        if self.how == "slice":
            return graphs.call(base.graph, aten.slice.Tensor, base, *self.given)
        return graphs.call(base.graph, aten.as_strided.default, base, *self.given) if self.how == "strided" else base

    def write(self, base: fx.Node, value: fx.Node) -> fx.Node:
        """The base's value after the argument got a new one."""
        if self.how == "slice":
            return graphs.call(base.graph, aten.slice_scatter.default, base, value, *self.given)
        if self.how == "strided":
            # Not by graphs.call: torch's own rule for the type refuses a base with gaps or an offset in memory.
            value = base.graph.call_function(aten.as_strided_scatter.default, (base, value, *self.given))
        graphs.lay_out_like(value, base)
        return value


BaseViews = BaseView | None | tuple[BaseView | None, ...]
"""What a written argument is of the bases: None for one that is not given, several for a list."""


@dataclasses.dataclass(frozen=True)
class MutatingCall:
    """A call of an operator that writes to arguments.

    Attributes:
        node: the call.
        overload: the operator.
        given: the arguments that it does not write, by name.
        bases: the memory that it writes, by position; None where there is none.
        keys: the name of each base among the call's arguments: ``out``, ``outs[1]``, ``_all_bases[0]``.
        views: for each written argument, what it is of the bases.
    """

    node: fx.Node
    overload: compat.OpOverload
    given: dict[str, Any]
    bases: tuple[fx.Node | None, ...]
    keys: tuple[str, ...]
    views: dict[str, BaseViews]

    def bases_of(self, name: str) -> list[int]:
        """Positions of the bases that a written argument is of."""
        return [view.base for view in flat(self.views[name])]

    def base_of(self, view: BaseView) -> fx.Node:
        """The memory that a view is of."""
        base = self.bases[view.base]
        assert base is not None
        return base

    def every_view(self) -> list[BaseView]:
        """The views of all written arguments, in order."""
        return [view for views in self.views.values() for view in flat(views)]

    def arguments(self, written: Callable[[BaseView], Any]) -> dict[str, Any]:
        """All arguments in the schema's order, those that are written made of their views."""
        made = {name: mapped(views, written) for name, views in self.views.items()}
        return {
            a.name: made[a.name] if a.name in made else self.given[a.name]
            for a in compat.schema(self.overload).arguments
        }

    def encoded(self, name: str, positions: Mapping[int, int]) -> dict[str, Any]:
        """The keyword arguments that describe a written argument to ``auto_functionalized_v2``.

        Args:
            name: the argument.
            positions: where the bases are that it is of.
        """
        views = self.views[name]
        if isinstance(views, tuple):
            each = [_encoded(f"_{name}_{index}", view, positions) for index, view in enumerate(views)]
            return {f"_{name}_length": len(views), **{key: value for keys in each for key, value in keys.items()}}
        if f"_{name}_length" in self.node.kwargs:
            return {f"_{name}_length": None}
        return _encoded(f"_{name}", views, positions)

    def returned(self, bases: Sequence[Any]) -> list[Any]:
        """New values of the bases as the call returns them, behind the operator's own results."""
        if self.node.target is not compat.auto_functionalized:
            return list(bases)
        values = iter(bases)
        return [[next(values) for _ in v] if isinstance(v, tuple) else next(values) for v in self.views.values()]

    def result_types(self) -> list[TensorType]:
        """Types of the operator's own results."""
        count = len(compat.schema(self.overload).returns)
        value = self.node.meta["val"]
        own = value[:count] if isinstance(value, (tuple, list)) else [value] * count
        return [TensorType.of(leaf) for leaf in compat.tree_leaves(list(own)) if isinstance(leaf, torch.Tensor)]


def is_functionalized(node: fx.Node) -> bool:
    """Whether a node is a call in one of the two forms."""
    return graphs.is_call(node, compat.auto_functionalized_v2) or graphs.is_call(node, compat.auto_functionalized)


def mutated_names(overload: compat.OpOverload) -> tuple[str, ...]:
    """The arguments that an operator writes to."""
    arguments = compat.schema(overload).arguments
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


def flat(views: BaseViews) -> list[BaseView]:
    """The views behind one argument."""
    return [view for view in (views if isinstance(views, tuple) else (views,)) if view is not None]


def mapped(views: BaseViews, function: Callable[[BaseView], Any]) -> Any:
    """What a function makes of the views behind one argument: a value, a list of them, or None."""
    if isinstance(views, tuple):
        return [None if view is None else function(view) for view in views]
    return None if views is None else function(views)


def decoded(node: fx.Node) -> MutatingCall:
    """A functionalised call. One whose outs are described, see ``described_outs``, has no bases to decode."""
    overload: Any = node.args[0]
    given, names = dict(node.kwargs), mutated_names(overload)
    kept = {
        a.name: given.get(a.name, a.default_value) for a in compat.schema(overload).arguments if a.name not in names
    }
    if graphs.is_call(node, compat.auto_functionalized):
        return of_arguments(node, overload, kept, given)
    bases: Any = given["_all_bases"]
    keys = tuple(f"_all_bases[{at}]" for at in range(len(bases)))
    return MutatingCall(node, overload, kept, tuple(bases), keys, {name: views_of(given, name) for name in names})


def of_arguments(
    node: fx.Node, overload: compat.OpOverload, given: dict[str, Any], bound: Mapping[str, Any]
) -> MutatingCall:
    """A call whose written arguments are its bases."""
    bases: list[fx.Node | None] = []
    keys: list[str] = []

    def enter(tensor: Any, key: str) -> BaseView | None:
        bases.append(tensor)
        keys.append(key)
        return None if tensor is None else BaseView(len(bases) - 1, "whole")

    def views(name: str, value: Any) -> BaseViews:
        if isinstance(value, (list, tuple)):
            return tuple(enter(tensor, f"{name}[{at}]") for at, tensor in enumerate(value))
        return enter(value, name)

    entered = {name: views(name, bound[name]) for name in mutated_names(overload)}
    return MutatingCall(node, overload, given, tuple(bases), tuple(keys), entered)


def views_of(given: Mapping[str, Any], name: str) -> BaseViews:
    """What a written argument is of the bases, by the keyword arguments of an ``auto_functionalized_v2`` call."""
    if f"_{name}_length" not in given:
        return _view(given, f"_{name}")
    length = given[f"_{name}_length"]
    return None if length is None else tuple(_view(given, f"_{name}_{index}") for index in range(length))


def _view(given: Mapping[str, Any], prefix: str) -> BaseView | None:
    base = given[f"{prefix}_base_index"]
    if base is None:
        return None
    if f"{prefix}_slice_dim" in given:
        return BaseView(base, "slice", tuple(given[f"{prefix}_{key}"] for key in SLICE))
    if f"{prefix}_storage_offset" in given:
        size, stride, offset = (given[f"{prefix}_{key}"] for key in STRIDED)
        return BaseView(base, "strided", (*size, *stride, offset))
    return BaseView(base, "whole")


def _encoded(prefix: str, view: BaseView | None, positions: Mapping[int, int]) -> dict[str, Any]:
    if view is None:
        return {f"{prefix}_base_index": None}
    keys = {"slice": SLICE, "strided": STRIDED}.get(view.how, ())
    numbers = {f"{prefix}_{key}": value for key, value in zip(keys, view.given, strict=True)}
    return {f"{prefix}_base_index": positions[view.base], **numbers}


def described_outs(node: fx.Node) -> dict[str, tuple[Any, torch.dtype, torch.device]] | None:
    """Size, dtype and device of each out of a call of an operator tagged ``torch.Tag.out`` that is given none to write
    to; None for another call."""
    overload: Any = node.args[0]
    given: Mapping[str, Any] = node.kwargs
    if not compat.is_out_operator(overload) or given.get("_all_bases", True):
        return None
    return {name: tuple(given[f"_{name}_{key}"] for key in DESCRIBED) for name in mutated_names(overload)}  # type: ignore[return-value]
