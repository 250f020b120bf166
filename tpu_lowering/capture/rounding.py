"""Sizes rounded up to buckets: which sizes of a captured graph are, and a call's program for them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse.padding import roundable_sizes
from tpu_lowering.analyse.padding.calls import expression
from tpu_lowering.analyse.padding.layouts import Expr
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.programs import Program
from tpu_lowering.normalise import aliases
from tpu_lowering.normalise.aliases import APART, Sharing
from tpu_lowering.normalise.mask_padding import number_dtype
from tpu_lowering.normalise.signature import new_values, written_back
from tpu_lowering.options import Buckets, round_up
from tpu_lowering.runtime.base import RunnableProgram
from tpu_lowering.runtime.padded import PaddedLayout, PaddedProgram, Result

Sizes = dict[sympy.Symbol, Any]


class Rounding:
    """How a captured graph runs with rounded sizes.

    Attributes:
        padding: what the analysis found.
        actions: for each size that is not rounded, why.
    """

    def __init__(self, graph: fx.Graph, buckets: Buckets, sharing: Sharing = APART) -> None:
        self.graph, self.buckets = graph, buckets
        self.placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.outputs: list[Any] = list(graph.output_node().args[0])  # type: ignore[arg-type]
        self.symbols = symbols = size_symbols(graph)
        self.sharing, written = sharing, new_values(graph)
        results = [node.args[1] if isinstance(node, fx.Node) and node in written else node for node in self.outputs]
        self.aliases = aliases.find(graph, results, written, sharing)
        self.bases = aliases.positions(graph, results, self.aliases)
        self.padding = roundable_sizes.analyse(graph, symbols, self._uncut(results))
        self.limits = dict(self.padding.limits)
        for symbol in self.padding.rounded:
            largest = compat.largest_size(symbols[symbol], symbol)
            if largest is not None:
                self.limits[symbol] = min(largest, self.limits.get(symbol, largest))
        self.actions = [_action(refused, symbols) for refused in self.padding.refused]

    def round(self, true: Sizes) -> Sizes:
        """The sizes of a call, rounded where that is exact."""
        return {symbol: self._rounded(symbol, size) for symbol, size in true.items()}

    def key(self, rounded: Sizes) -> Hashable:
        """What tells programs for rounded sizes apart."""
        return tuple(rounded[symbol] for symbol in self.symbols)

    def _rounded(self, symbol: sympy.Symbol, size: Any) -> Any:
        if symbol not in self.padding.rounded:
            return size
        wanted = round_up(size, self.buckets)
        return max(size, min(wanted, self.limits.get(symbol, wanted)))

    def arguments(self, true: Sizes, rounded: Sizes, arguments: Sequence[Any]) -> list[Any]:
        """Arguments of rounded sizes, with undefined padding: what the program is compiled for."""
        places, given = self._places(true, rounded), self._given(rounded, arguments)
        return [
            one if place is None else argument.new_empty(place.padded_shape) if place.is_padded else argument
            for place, one, argument in zip(places, given, arguments, strict=True)
        ]

    def call(
        self,
        runnable: RunnableProgram,
        program: Program,
        sizes: tuple[Sizes, Sizes],
        arguments: Sequence[Any],
        poison: bool,
    ) -> PaddedProgram:
        """The program, for calls with the sizes of given arguments.

        Args:
            runnable: the program for the rounded sizes, compiled.
            program: the same.
            sizes: true and rounded.
            arguments: a call's arguments.
            poison: see ``Options.poison``.
        """
        true, rounded = sizes
        numbers = tuple(torch.tensor(_value(value, true), dtype=number_dtype(value)) for value in program.numbers)
        results = tuple(self._result(at, true, rounded) for at in range(len(self.outputs)))
        return PaddedProgram(
            runnable,
            tuple(self._places(true, rounded)),
            tuple(self._given(rounded, arguments)),
            numbers,
            results,
            written_back(self.graph),
            poison,
        )

    def _places(self, true: Sizes, rounded: Sizes) -> list[PaddedLayout | None]:
        return [self._place(node, true, rounded) for node in self.placeholders]

    def _place(self, node: fx.Node, true: Sizes, rounded: Sizes) -> PaddedLayout | None:
        if node.name not in self.padding.layouts:
            return None
        layout = self.padding.layouts[node.name]
        factors = [factor for dim in layout for factor in dim]
        return PaddedLayout(
            tuple(_value(size, true) for size in roundable_sizes.shape_of(node.meta["val"])),
            tuple(_value(factor, true) for factor in factors),
            tuple(_value(factor, rounded) for factor in factors),
            tuple(map(len, layout)),
        )

    def _given(self, rounded: Sizes, arguments: Sequence[Any]) -> list[Any]:
        """Arguments that are sizes, rounded."""
        found: list[Any] = []
        for node, argument in zip(self.placeholders, arguments, strict=True):
            size = expression(node)
            found.append(argument if size is None or isinstance(argument, torch.Tensor) else _value(size, rounded))
        return found

    def _uncut(self, results: Sequence[Any]) -> list[fx.Node]:
        """Results that are not what is left of a padded one: several views of a value that is no result, and views of
        what an argument is overwritten with."""
        hidden = aliases.hidden_bases(results, self.aliases, self.sharing)
        views = [alias.result for alias in self.aliases if alias is not None and alias.of_new_value and alias.views]
        return [*views, *(node for node in results if aliases.is_tensor(node) and aliases.base_of(node) in hidden)]

    def _result(self, at: int, true: Sizes, rounded: Sizes) -> Result:
        output, alias = self.outputs[at], self.aliases[at]
        if alias is not None:
            tracked = self.sharing.tracked and at < self.sharing.seen
            found = alias.output(self.bases[alias.base], tracked, lambda size: _value(expression(size), true))
            return Result(None, alias=found)
        if not isinstance(output, fx.Node):
            return Result(None, constant=output)
        if not isinstance(output.meta.get("val"), torch.Tensor):
            size = expression(output)
            return Result(None, constant=output.meta.get("val") if size is None else _value(size, true))
        stride = tuple(_value(expression(step), true) for step in output.meta["val"].stride())
        return Result(self._place(output, true, rounded), stride)


def _value(size: Expr, sizes: Sizes) -> Any:
    """The number that an expression stands for."""
    number = sympy.sympify(size).subs(sizes)
    return int(number) if number.is_integer else float(number)


def size_symbols(graph: fx.Graph) -> dict[sympy.Symbol, torch.SymInt]:
    """Size symbols of a graph's inputs, each with a size that it stands in."""
    found: dict[sympy.Symbol, torch.SymInt] = {}
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for size in value.shape if isinstance(value, torch.Tensor) else [value]:
            if isinstance(size, torch.SymInt):
                for symbol in size.node.expr.free_symbols:
                    found.setdefault(symbol, size)
    return found


def _action(refused: roundable_sizes.UnroundableSizes, symbols: dict[sympy.Symbol, torch.SymInt]) -> Action:
    """What the report says of sizes that are not rounded."""
    names = [compat.size_source(symbols[symbol], symbol) or str(symbol) for symbol in refused.symbols]
    reason = f"{', '.join(names)} is not rounded up: {refused.reason}"
    return Action("exact", refused.node.name, graphs.source_line(refused.node), "TL511", reason, 0)
