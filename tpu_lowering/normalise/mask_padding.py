"""A graph of rounded sizes, edited so that its valid results are exact; ``analyse.padding`` says how.

Before, for ``s`` rounded from 5 up to 8::

    sum = aten.sum.dim_IntList(x, [1])            # x: f32[4, 8], three columns undefined

After::

    valid = aten.lt.Tensor(iota, true_0)          # true_0: i32[()], the true s, an input of the program
    masked = aten.where.self(valid, x, zero)
    sum = aten.sum.dim_IntList(masked, [1])

Elements are selected, never multiplied by 0: what is undefined may be NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse.padding.calls import (
    Edit,
    Element,
    Fill,
    HideKeys,
    Mask,
    Mean,
    Number,
    Overlay,
    Put,
    Shift,
    SliceWindow,
    WindowPut,
    Wrap,
    WritePosition,
)
from tpu_lowering.analyse.padding.elementwise_and_rows import TENSOR_FORMS
from tpu_lowering.analyse.padding.layouts import Expr
from tpu_lowering.analyse.padding.roundable_sizes import Padding
from tpu_lowering.ir import graphs
from tpu_lowering.ir.collectives import mesh_coordinate
from tpu_lowering.ir.mesh import COORDINATES

aten = compat.aten
iota = compat.prims.iota.default


def mask_padding(module: fx.GraphModule, padding: Padding, sizes: Mapping[sympy.Symbol, int]) -> tuple[Expr, ...]:
    """Edits a specialised graph in place.

    Args:
        module: the graph, specialised to rounded sizes.
        padding: what the analysis of the captured graph found.
        sizes: what every symbol stands for in the module, rounded.

    Returns:
        The numbers that the program is told when it runs: expressions in true sizes. Each is a further argument
        of the graph, after its own: a scalar of ``number_dtype``.
    """
    editor = _Editor(module.graph, padding.rounded, sizes)
    nodes = {node.name: node for node in module.graph.nodes}
    for name, edits in padding.edits.items():
        for edit in edits:
            editor.apply(nodes[name], edit)
    return tuple(editor.numbers)


def number_dtype(value: Expr, sizes: bool = True) -> torch.dtype:
    """The dtype that a number goes to the program in: int32 for a size, int64 for what is made of sizes, or is none."""
    if not value.is_integer:
        return torch.float64
    if not sizes:
        return torch.int64
    return torch.int32 if value.is_Symbol or value.as_coeff_Add()[1].is_Symbol else torch.int64


OF_TENSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Add": (aten.add.Tensor, {}),
    "Mul": (aten.mul.Tensor, {}),
    "Mod": (aten.remainder.Tensor, {}),
    "PythonMod": (aten.remainder.Tensor, {}),
    "FloorDiv": (aten.div.Tensor_mode, {"rounding_mode": "floor"}),
    "Max": (aten.maximum.default, {}),
    "Min": (aten.minimum.default, {}),
}
"""What computes with tensors as a function of sympy's computes with numbers."""


class _Editor:
    def __init__(self, graph: fx.Graph, rounded: frozenset[sympy.Symbol], sizes: Mapping[sympy.Symbol, int]) -> None:
        self.graph, self.rounded, self.sizes = graph, rounded, dict(sizes)
        self.mode = graphs.fake_mode(graph)
        self.numbers: dict[Expr, fx.Node] = {}
        module = graph.owning_module
        self.coordinates = {} if module is None else module.meta.get(COORDINATES, {})
        self.computed: dict[Expr, fx.Node] = {}
        self.firsts: list[fx.Node] = []

    def apply(self, node: fx.Node, edit: Edit) -> None:
        """Makes one edit; new nodes stand before the node, or right after it, and carry its source line."""
        match edit:
            case Mask():
                with graphs.inserting_for(node):
                    _replace_argument(node, edit.argument, edit.item, lambda old: self._masked(old, edit))
            case Number():
                self._number_argument(node, edit)
            case Mean():
                self._mean(node, edit.count)
            case Overlay():
                self._overlay(node, edit)
            case Element():
                self._element(node, edit)
            case Put():
                self._put(node, edit)
            case Wrap():
                with graphs.inserting_for(node):
                    _replace_argument(node, "indices", edit.item, lambda old: self._wrapped(old, edit.size))
            case WritePosition():
                self._place(node, edit)
            case Shift():
                self._shift(node, edit)
            case SliceWindow():
                self._window(node, edit)
            case WindowPut():
                self._window_put(node, edit)
            case HideKeys():
                with graphs.inserting_for(node):
                    hidden = self._hidden_keys(node, edit.factors)
                _replace_argument(node, "attn_mask", None, lambda _: hidden)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graphs.call(self.graph, target, *args, **kwargs)

    def number(self, value: Expr) -> fx.Node:
        """The input that holds the true value of an expression."""
        value = sympy.expand(value)
        if value.free_symbols & self.coordinates.keys():
            return self._of_places(value)
        if value not in self.numbers:
            last = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
            with self.graph.inserting_after(last):
                node = self.graph.placeholder(f"true_{len(self.numbers)}")
            with self.mode:
                node.meta["val"] = torch.empty((), dtype=number_dtype(value, bool(self.rounded)))
            self.numbers[value] = node
        return self.numbers[value]

    def _of_places(self, value: Expr) -> fx.Node:
        """An expression in places of a rank, which the program computes: int64 [], before all other nodes."""
        if value not in self.computed:
            if value.is_Symbol:
                made = self._first(mesh_coordinate, *self.coordinates[value])
            else:
                target, named = OF_TENSORS[type(value).__name__]
                made, *others = map(self._operand, value.args)
                for other in others:
                    made = self._first(target, made, other, **named)
            self.computed[value] = made
        return self.computed[value]

    def _operand(self, value: Expr) -> fx.Node:
        if not value.is_Integer:
            return self.number(value)
        if value not in self.computed:
            self.computed[value] = self._first(aten.full.default, [], int(value), dtype=torch.int64)
        return self.computed[value]

    def _first(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call before all nodes of the graph, and after those that were made so before."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        with self.graph.inserting_after([*placeholders, *self.firsts][-1]):
            self.firsts.append(self.call(target, *args, **kwargs))
        return self.firsts[-1]

    def constant(self, value: Any, dtype: torch.dtype) -> fx.Node:
        return self.call(aten.full.default, [], value, dtype=dtype)

    def _valid(self, factors: Sequence[Expr]) -> fx.Node:
        """Whether each element of a dimension is valid: bool[size]."""
        sizes = [int(sympy.sympify(factor).subs(self.sizes)) for factor in factors]
        found: fx.Node | None = None
        for at, factor in enumerate(factors):
            if not sympy.sympify(factor).free_symbols & self.rounded:
                continue
            places = self.call(iota, sizes[at], start=0, step=1, dtype=torch.int32, device="cpu", requires_grad=False)
            valid = self.call(aten.lt.Tensor, places, self.number(factor))
            valid = self.call(aten.view.default, valid, [sizes[at] if i == at else 1 for i in range(len(sizes))])
            found = valid if found is None else self.call(aten.logical_and.default, found, valid)
        assert found is not None
        if len(sizes) > 1:
            found = self.call(aten.expand.default, found, sizes)
            found = self.call(aten.reshape.default, found, [math.prod(sizes)])
        return found

    def _masked(self, value: fx.Node, edit: Mask) -> fx.Node:
        """A value with its undefined elements along some dimensions replaced."""
        tensor = value.meta["val"]
        valid: fx.Node | None = None
        for axis, factors in edit.axes:
            vector = self._valid(factors)
            shape = [int(size) if at == axis else 1 for at, size in enumerate(tensor.shape)]
            vector = self.call(aten.view.default, vector, shape)
            valid = vector if valid is None else self.call(aten.logical_and.default, valid, vector)
        assert valid is not None
        fill = self.constant(_fill_value(edit.fill, tensor.dtype), tensor.dtype)
        return self.call(aten.where.self, valid, value, fill)

    def _number_argument(self, node: fx.Node, edit: Number) -> None:
        """A number becomes a tensor of no dimensions, in a dtype that does not decide the result's."""
        result = node.meta["val"]
        tensors = [
            used.meta["val"].dtype for used in node.all_input_nodes if isinstance(used.meta["val"], torch.Tensor)
        ]
        if node.target in (aten.full.default, aten.scalar_tensor.default):
            with graphs.inserting_for(node):
                value = self.call(aten._to_copy.default, self.number(edit.value), dtype=result.dtype)
                value = self.call(aten.expand.default, value, list(result.shape))
            _stand_in(value, node)
            return
        wide = torch.float64 in tensors or torch.complex128 in tensors
        dtype = torch.int64
        if result.dtype.is_floating_point or any(t.is_floating_point or t.is_complex for t in tensors):
            dtype = torch.float64 if wide else torch.float32
        elif not edit.value.is_integer:
            dtype = torch.float32
        with graphs.inserting_for(node):
            value = self.call(aten._to_copy.default, self.number(edit.value), dtype=dtype)
        _replace_argument(node, edit.argument, None, lambda _: value)
        node.target = TENSOR_FORMS.get(node.target, node.target)

    def _mean(self, node: fx.Node, count: Expr) -> None:
        """In float32 at least, as the operator itself computes it, and rounded once."""
        given = graphs.bound(node)
        result = node.meta["val"]
        wide = torch.promote_types(result.dtype, torch.float32)
        axes = given.get("dim") or list(range(given["self"].meta["val"].ndim))
        with graphs.inserting_for(node):
            total = self.call(aten.sum.dim_IntList, given["self"], axes, given.get("keepdim", False), dtype=wide)
            divisor = self.call(aten._to_copy.default, self.number(count), dtype=wide)
            quotient = self.call(aten.div.Tensor, total, divisor)
            if wide != result.dtype:
                quotient = self.call(aten._to_copy.default, quotient, dtype=result.dtype)
        graphs.replace(node, quotient)

    def _places(self, size: int, axis: int, rank: int) -> fx.Node:
        """The place of each element along an axis, to be broadcast over a value of some rank."""
        places = self.call(iota, size, start=0, step=1, dtype=torch.int32, device="cpu", requires_grad=False)
        return self.call(aten.view.default, places, [size if at == axis else 1 for at in range(rank)])

    def _overlay(self, node: fx.Node, edit: Overlay) -> None:
        result = node.meta["val"]
        with graphs.inserting_for(node.next):
            places = self._places(int(result.shape[edit.axis]), edit.axis, result.ndim)
            written = self.call(aten.lt.Tensor, places, self.number(edit.stop))
            chosen = self.call(aten.where.self, written, node, graphs.bound(node)["self"])
        node.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)

    def _put(self, node: fx.Node, edit: Put) -> None:
        given, result = graphs.bound(node), node.meta["val"]
        with graphs.inserting_for(node):
            places = self._places(int(result.shape[edit.axis]), edit.axis, result.ndim)
            written = self.call(aten.eq.Tensor, places, self.number(edit.position))
            source = self.call(aten.unsqueeze.default, given["src"], edit.axis)
            chosen = self.call(aten.where.self, written, source, given["self"])
        graphs.replace(node, chosen)

    def _element(self, node: fx.Node, edit: Element) -> None:
        value = graphs.bound(node)["self"]
        with graphs.inserting_for(node):
            place = self.call(aten.view.default, self.number(edit.position), [1])
            chosen = self.call(aten.index_select.default, value, edit.axis, place)
            chosen = self.call(aten.squeeze.dim, chosen, edit.axis)
        graphs.replace(node, chosen)

    def _place(self, node: fx.Node, edit: WritePosition) -> None:
        given = graphs.bound(node)
        with graphs.inserting_for(node):
            place = self.call(aten.view.default, self.number(edit.position), [1])
            source = self.call(aten.unsqueeze.default, given["src"], edit.axis)
            written = self.call(aten.index_copy.default, given["self"], edit.axis, place, source)
        _stand_in(written, node)

    def _shift(self, node: fx.Node, edit: Shift) -> None:
        given, value = graphs.bound(node), node.meta["val"]
        options = {"dtype": value.dtype, "device": "cpu", "requires_grad": False}
        with graphs.inserting_for(node):
            places = self.call(iota, int(value.shape[0]), start=0, step=given["step"], **options)
            start = self.call(aten._to_copy.default, self.number(edit.start), dtype=value.dtype)
            shifted = self.call(aten.add.Tensor, places, start)
        _stand_in(shifted, node)

    def _window(self, node: fx.Node, edit: SliceWindow) -> None:
        given, count = graphs.bound(node), int(node.meta["val"].shape[edit.axis])
        with graphs.inserting_for(node):
            places = self._window_places(count, edit)
            chosen = self.call(aten.index_select.default, given["self"], edit.axis, places)
        graphs.replace(node, chosen)

    def _window_put(self, node: fx.Node, edit: WindowPut) -> None:
        given = graphs.bound(node)
        count = int(given["src"].meta["val"].shape[edit.axis])
        with graphs.inserting_for(node):
            places = self._window_places(count, edit)
            written = self.call(aten.index_copy.default, given["self"], edit.axis, places, given["src"])
        _stand_in(written, node)

    def _window_places(self, count: int, edit: SliceWindow | WindowPut) -> fx.Node:
        options = {"dtype": torch.int64, "device": "cpu", "requires_grad": False}
        places = self.call(iota, count, start=0, step=edit.step, **options)
        return self.call(aten.add.Tensor, places, self.number(edit.start))

    def _wrapped(self, indices: fx.Node, size: Expr) -> fx.Node:
        zero = self.constant(0, indices.meta["val"].dtype)
        negative = self.call(aten.lt.Tensor, indices, zero)
        return self.call(aten.where.self, negative, self.call(aten.add.Tensor, indices, self.number(size)), indices)

    def _hidden_keys(self, node: fx.Node, factors: Sequence[Expr]) -> fx.Node:
        """[q, k]: 0, and -inf for undefined keys."""
        given = graphs.bound(node)
        query, key = given["query"].meta["val"], given["key"].meta["val"]
        zero, hidden = self.constant(0.0, query.dtype), self.constant(-math.inf, query.dtype)
        weights = self.call(aten.where.self, self._valid(factors), zero, hidden)
        return self.call(aten.expand.default, weights, [int(query.shape[2]), int(key.shape[2])])


def _stand_in(new: fx.Node, old: fx.Node) -> None:
    """Puts a node in the place of another: with its strides, and in its memory, for results that are views of it."""
    new.meta |= {key: old.meta[key] for key in ("val", "memory") if key in old.meta}
    graphs.replace(old, new)


def _fill_value(fill: Fill, dtype: torch.dtype) -> Any:
    if not isinstance(fill, str):
        return bool(fill) if dtype is torch.bool else fill
    least = fill == "lowest"
    if dtype is torch.bool:
        return not least
    if dtype.is_floating_point:
        return -math.inf if least else math.inf
    return torch.iinfo(dtype).min if least else torch.iinfo(dtype).max


def _replace_argument(node: fx.Node, name: str, item: int | None, make: Callable[[Any], Any]) -> None:
    """Replaces an argument, by its name in the operator's schema, or one item of it."""
    schema = compat.schema(node.target)
    position = next(at for at, argument in enumerate(schema.arguments) if argument.name == name)
    given = graphs.bound(node)[name]
    new = make(given) if item is None else [make(one) if at == item else one for at, one in enumerate(given)]
    if position < len(node.args) and not schema.arguments[position].kwarg_only:
        node.update_arg(position, new)
    else:
        node.update_kwarg(name, new)
