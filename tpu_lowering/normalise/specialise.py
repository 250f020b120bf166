"""One graph for all sizes to one graph for given sizes: symbols become the numbers they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import fakes, graphs
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.mesh import COORDINATES, MESH, coordinates_of
from tpu_lowering.ir.regions import Region
from tpu_lowering.ir.types import ELEMENT_TYPES, element_type
from tpu_lowering.normalise.aliases import memory_of
from tpu_lowering.normalise.subgraphs import inline_subgraphs

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def specialise(module: fx.GraphModule, arguments: Sequence[Any], chip: Chip = CPU) -> fx.GraphModule:
    """A copy of a captured graph in which every size is a number.

    Placeholders of symbolic integers stay (they are arguments) but have no users left. Every node's
    ``meta["val"]`` is a fake tensor of concrete shape, dtype and strides, and belongs to one new fake mode. All are on
    the CPU, whatever device was captured: where a program runs is its runtime's business.

    Args:
        module: graph from AOTAutograd.
        arguments: what it is called with: tensors, real or fake, and integers.
        chip: what it is for.

    Raises:
        TpuLoweringError: TL303 if a shape depends on data.
    """
    specialised = _copy(inline_subgraphs(module), _Substitution(module.graph, arguments, chip))
    specialised.meta |= {key: module.meta[key] for key in (MESH, COORDINATES) if key in module.meta}
    return specialised


def _copy(module: fx.GraphModule, substitution: _Substitution) -> fx.GraphModule:
    """The copy of a graph; sub-graphs become regions, with the symbols of the graph around them."""
    copied = fx.Graph()
    nodes: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            copied.output(compat.map_arg(node.args[0], lambda used: nodes[used]))
            continue
        if node.op == "get_attr" and isinstance(sub_graph := getattr(module, str(node.target)), fx.GraphModule):
            nodes[node] = Region(str(node.target), sub_graph)
            continue
        recorded = node.meta.get("val")
        value = substitution.concrete(node, recorded, nodes)
        refuse_dtypes(node, value)
        is_number = isinstance(recorded, SYMBOLIC)
        if is_number and node.op != "placeholder":
            nodes[node] = value
            continue
        args, kwargs = substitution.concrete(node, (node.args, node.kwargs), nodes)
        new = copied.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = {**node.meta, "val": value, "memory": memory_of(recorded)}
        nodes[node] = value if is_number else new
    specialised = graphs.module_of(module, copied)
    specialised.meta |= {"chip": substitution.chip, graphs.VALUES: substitution.values}
    return specialised


def sizes_of(graph: fx.Graph, arguments: Sequence[Any]) -> dict[sympy.Symbol, Any]:
    """What every size symbol of a graph's inputs stands for in a call."""
    return dict(_Substitution(graph, arguments, CPU).numbers)


class _Substitution:
    """What every size symbol of a graph stands for, read off the arguments of a call."""

    def __init__(self, graph: fx.Graph, arguments: Sequence[Any], chip: Chip) -> None:
        self.chip = chip
        self.values = fakes.Values(compat.FakeTensorMode(allow_non_fake_inputs=True))
        self.numbers: dict[sympy.Symbol, Any] = dict.fromkeys(coordinates_of(graph), 0)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        pairs = [(node.meta.get("val"), argument) for node, argument in zip(placeholders, arguments, strict=True)]
        for recorded, argument in pairs:
            if not isinstance(recorded, torch.Tensor):
                self._bind(recorded, argument)
                continue
            for symbolic, number in zip(recorded.shape, argument.shape, strict=True):
                self._bind(symbolic, number)
        for recorded, argument in pairs:  # an argument of rounded sizes is row-major, whatever was captured
            if isinstance(recorded, torch.Tensor):
                for symbolic, number in zip(_layout(recorded), _layout(argument), strict=True):
                    self._bind(symbolic, number)

    def _bind(self, symbolic: Any, number: Any) -> None:
        """Takes a symbol for a number, unless it is known: sizes say more than strides."""
        if isinstance(symbolic, SYMBOLIC) and isinstance(symbolic.node.expr, sympy.Symbol):
            if isinstance(number, SYMBOLIC):
                if number.node.is_nested_int():
                    raise jagged()
                number = number.node.require_hint()
            self.numbers.setdefault(symbolic.node.expr, number)

    def concrete(self, node: fx.Node, value: Any, nodes: Mapping[fx.Node, Any]) -> Any:
        """A value or an argument list with numbers in place of symbols, tensors as fake tensors of the new mode.

        Args:
            node: whose it is.
            value: may be nested.
            nodes: what stands for each node of the graph.
        """

        def leaf(item: Any) -> Any:
            if isinstance(item, fx.Node):
                item = nodes[item]  # maybe a number, or a sub-graph that is to be copied
            if isinstance(item, SYMBOLIC):
                return self._number(node, item)
            if isinstance(item, torch.Tensor):
                return self._tensor(node, item)
            if isinstance(item, torch.device):
                return fakes.CPU
            return Region(item.name, _copy(inline_subgraphs(item.module), self)) if isinstance(item, Region) else item

        return compat.map_aggregate(value, leaf)

    def _number(self, node: fx.Node, item: Any) -> Any:
        number = sympy.sympify(item.node.expr).subs(self.numbers)
        if number.free_symbols:
            raise data_dependent(node)
        kind = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}[type(item)]
        return kind(number)

    def _tensor(self, node: fx.Node, item: torch.Tensor) -> torch.Tensor:
        numbers = [self._number(node, one) if isinstance(one, torch.SymInt) else one for one in _layout(item)]
        shape, stride = tuple(numbers[: item.ndim]), tuple(numbers[item.ndim : -1])
        return self.values.of(fakes.Layout(item.dtype, shape, stride, numbers[-1]))


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Sizes, strides and the offset of the first element in memory."""
    return (*tensor.shape, *tensor.stride(), tensor.storage_offset())


def free_symbols(value: Any) -> set[Any]:
    """The symbols in a node's value: in numbers, and in the layouts of tensors."""
    found: set[Any] = set()
    for leaf in compat.tree_leaves(value):
        sizes = _layout(leaf) if isinstance(leaf, torch.Tensor) else (leaf,)
        found.update(*(sympy.sympify(one.node.expr).free_symbols for one in sizes if isinstance(one, SYMBOLIC)))
    return found


def refuse_data_dependence(graph: fx.Graph) -> None:
    """Checks that every size follows from the sizes of the inputs.

    Raises:
        TpuLoweringError: TL303.
    """
    known: set[Any] = set(coordinates_of(graph))
    for node in graph.nodes:
        symbols = free_symbols(node.meta.get("val"))
        if node.op == "placeholder":
            known |= symbols
        elif not symbols <= known:
            raise data_dependent(node)


def refuse_dtypes(node: fx.Node, value: Any) -> None:
    """Checks the dtypes of a node's tensors.

    Raises:
        TpuLoweringError: TL302 for one that JAX does not have.
    """
    for leaf in (value,) if isinstance(value, torch.Tensor) else compat.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and element_type(leaf.dtype) is None:
            what = "an input" if node.op == "placeholder" else str(node.target)
            raise errors.refuse(
                "TL302",
                f"{leaf.dtype} of {what}",
                f"expected one of {', '.join(str(element.torch) for element in ELEMENT_TYPES)}, got {leaf.dtype}",
                "convert it in eager, before the compiled function, to a dtype that JAX has too",
                graphs.source_line(node),
            )


def jagged() -> errors.TpuLoweringError:
    """The refusal of a nested tensor, whose rows have lengths that only its data say."""
    return errors.refuse(
        "TL309",
        "an argument of torch.jagged layout",
        "expected tensors whose sizes are numbers, got a nested tensor, whose rows have lengths of their own",
        "pass x.values() and x.offsets(), or x.to_padded_tensor(0.0) and a mask",
    )


def data_dependent(node: fx.Node) -> errors.TpuLoweringError:
    """The refusal of a shape that depends on values."""
    return errors.refuse(
        "TL303",
        str(node.target),
        "expected every shape to follow from the shapes of the inputs, got one that depends on values",
        DATA_DEPENDENT_LOOPS.get(
            str(node.target),
            "use a form with a fixed shape (a mask, topk with a fixed k, torch.where with three arguments), "
            "compile without fullgraph=True so that the graph breaks here, or run it in eager torch between two "
            "programs with options={'fallback': 'eager'}",
        ),
        graphs.source_line(node),
    )


DATA_DEPENDENT_LOOPS = {
    "while_loop": "let the loop carry a tensor, such as torch.tensor(0), in place of a Python integer",
    "while_loop_stack_output": "the gradient needs every step's values, and the number of steps depends on values: "
    "use scan, which takes a fixed number of steps, or run the loop under torch.no_grad()",
}
