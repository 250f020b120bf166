"""Which sizes of a graph may be rounded up, and what each operator needs so that its valid results stay exact.

The claim about every value: its *valid* elements, those whose every coordinate lies among the first ones of its
factor (see ``analyse.padding.layouts``), are what they are without rounding; the others are undefined, NaN included. An
operator's rule proves the claim for its results from the claim for its operands, if need be with edits: an operand's
undefined elements are replaced by a value that does not matter (0 to a sum), or a size that is used as a number is
replaced by the true one, which the program is told when it runs. What no rule proves is not rounded.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse.padding import attention, creation_and_views, elementwise_and_rows, gathers
from tpu_lowering.analyse.padding.calls import RULES, Edit, OperatorCall, Rule, expression, is_number, shape_of
from tpu_lowering.analyse.padding.layouts import Expr, Inexact, Layout, PaddedDim, Sizes, Undecided, same

RULE_FILES = (elementwise_and_rows, creation_and_views, gathers, attention)  # importing one enters its rules


def find_rule(target: Any) -> Rule | None:
    """The rule of an operator; those that torch tags as pointwise have one in common."""
    tags = getattr(target, "tags", ())
    found = RULES.get(target)
    if found is None and torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags:
        return elementwise_and_rows.pointwise
    return found


@dataclasses.dataclass(frozen=True)
class UnroundableSizes:
    """Sizes that stay as they are, and the node that has no exact rule for them."""

    node: fx.Node
    symbols: tuple[sympy.Symbol, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Padding:
    """How a graph runs with rounded sizes.

    Attributes:
        rounded: symbols whose sizes are rounded.
        layouts: of every placeholder and result with a tensor: the factors of each dimension.
        edits: by the name of the node.
        limits: the largest value of a symbol that the graph's operators take.
        refused: symbols that are not rounded, with reasons.
    """

    rounded: frozenset[sympy.Symbol]
    layouts: dict[str, tuple[tuple[Expr, ...], ...]]
    edits: dict[str, tuple[Edit, ...]]
    limits: dict[sympy.Symbol, int]
    refused: tuple[UnroundableSizes, ...]


class Attempt:
    """The analysis for one choice of symbols."""

    def __init__(self, graph: fx.Graph, rounded: Iterable[sympy.Symbol]) -> None:
        self.graph, self.sizes = graph, Sizes(rounded)
        self.layouts: dict[fx.Node, Any] = {}
        self.edits: dict[str, tuple[Edit, ...]] = {}
        self.limits: dict[sympy.Symbol, int] = {}

    def run(self) -> UnroundableSizes | None:
        """Goes through the graph until every layout is known; what is refused first, if anything is."""
        while True:
            known = len(self.sizes.chosen)
            undecided: tuple[fx.Node, PaddedDim] | None = None
            for node in self.graph.nodes:
                try:
                    self._visit(node)
                except Undecided as error:
                    undecided = undecided or (node, error.dim)
                    self.layouts[node] = self._of_value(node)
                except Inexact as error:
                    return self._refused(node, error)
            if len(self.sizes.chosen) > known:
                continue
            undecided = undecided or self._unsettled()
            if undecided is None:
                return None
            node, dim = undecided
            try:
                self.sizes.choose(dim, self.sizes.usual(dim.size))
            except Inexact as error:
                return self._refused(node, error)

    def edges(self) -> list[fx.Node]:
        """Placeholders and results that are tensors."""
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        nodes += [node for node in self.graph.output_node().args[0] if isinstance(node, fx.Node)]  # type: ignore[union-attr]
        return [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]

    def _unsettled(self) -> tuple[fx.Node, PaddedDim] | None:
        """An edge whose layout nothing has settled."""
        for node in self.edges():
            try:
                self.settled(node)
            except Undecided as error:
                return node, error.dim
        return None

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output" or is_number(node):
            return
        if node.op != "call_function":
            self.layouts[node] = self._of_value(node)
            return
        self.edits.pop(node.name, None)
        if not self._touches_rounded(node):
            self.layouts[node] = self._of_value(node)
            return
        if node.target is operator.getitem:
            source: Any = node.args[0]
            self.layouts[node] = self.layouts[source][node.args[1]]
            return
        function = find_rule(node.target)
        if function is None:
            raise Inexact(f"expected an operator with a rule for padding, got {node.target}")
        call = OperatorCall(node, self.sizes, self.layouts, self.limits)
        layouts = function(call)
        if call.unexplained:
            names = ", ".join(sorted(call.unexplained))
            raise Inexact(f"expected a size to be used as a size, got a number made of it as argument '{names}'")
        self._check(node, layouts)
        self.layouts[node] = layouts
        if call.edits:
            self.edits[node.name] = tuple(call.edits)

    def _of_value(self, node: fx.Node) -> Any:
        """The layouts that sizes alone give."""
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return self._of_tensor(value, node.name)
        if isinstance(value, (tuple, list)):
            return tuple(
                self._of_tensor(item, f"{node.name}:{at}") if isinstance(item, torch.Tensor) else None
                for at, item in enumerate(value)
            )
        return ()

    def _of_tensor(self, value: torch.Tensor, name: str) -> Layout:
        return tuple(self.sizes.of_input(size, f"{name}.{axis}") for axis, size in enumerate(shape_of(value)))

    def symbols(self, node: fx.Node) -> frozenset[sympy.Symbol]:
        """The rounded symbols in what a node takes and gives."""
        found: set[sympy.Symbol] = set()
        for leaf in compat.tree_leaves(
            [node.meta.get("val"), *(used.meta.get("val") for used in node.all_input_nodes)]
        ):
            sizes = shape_of(leaf) if isinstance(leaf, torch.Tensor) else [expression(leaf)]
            found.update(*(size.free_symbols for size in sizes if size is not None))
        return frozenset(found) & self.sizes.rounded

    def _touches_rounded(self, node: fx.Node) -> bool:
        return bool(self.symbols(node))

    def _refused(self, node: fx.Node, error: Inexact) -> UnroundableSizes:
        symbols = frozenset(symbol for size in error.sizes for symbol in sympy.sympify(size).free_symbols)
        symbols = (symbols & self.sizes.rounded) or self.symbols(node)
        return UnroundableSizes(node, tuple(sorted(symbols, key=str)), error.reason)

    def _check(self, node: fx.Node, layouts: Any) -> None:
        """Checks a rule's answer against the sizes that were recorded.

        Raises:
            Inexact: they differ.
        """
        value = node.meta["val"]
        values, found = (value, layouts) if isinstance(value, (tuple, list)) else ([value], [layouts])
        for item, layout in zip(values, found, strict=True):
            if isinstance(item, torch.Tensor):
                sizes, dims = shape_of(item), [dim.size for dim in layout]
                if len(sizes) != len(dims) or not all(map(same, sizes, dims)):
                    raise Inexact(f"expected a result of sizes {tuple(dims)}, got {sizes}")

    def settled(self, node: fx.Node) -> tuple[tuple[Expr, ...], ...]:
        """The factors of a node's dimensions."""
        return tuple(self.sizes.factors(dim) for dim in self.layouts[node])


def analyse(graph: fx.Graph, candidates: Iterable[sympy.Symbol], uncut: Sequence[fx.Node] = ()) -> Padding:
    """Finds the symbols of a captured graph whose sizes may be rounded up, and what that takes.

    Args:
        graph: a graph from AOTAutograd, with symbolic sizes.
        candidates: symbols to try.
        uncut: results that cannot be cut out of padded ones, because they share memory.
    """
    rounded = set(candidates)
    refused = _shared_results(graph, rounded, uncut)
    rounded -= {symbol for one in refused for symbol in one.symbols}
    while True:
        attempt = Attempt(graph, rounded)
        found = attempt.run()
        if found is None:
            break
        refused.append(found)
        rounded -= set(found.symbols)
    layouts = {node.name: attempt.settled(node) for node in attempt.edges()}
    return Padding(frozenset(rounded), layouts, dict(attempt.edits), dict(attempt.limits), tuple(refused))


def _shared_results(graph: fx.Graph, rounded: set[sympy.Symbol], shared: Sequence[fx.Node]) -> list[UnroundableSizes]:
    """Results that share memory with another result."""
    attempt = Attempt(graph, rounded)
    found = [(node, attempt.symbols(node)) for node in shared]
    reason = "expected results with memory of their own, got two that share it"
    return [UnroundableSizes(node, tuple(sorted(symbols, key=str)), reason) for node, symbols in found if symbols]
