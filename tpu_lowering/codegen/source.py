"""A program as Python source: one line a node, in the order of the graph, types written out.

::

    def forward_0(x):
        with jax.named_scope("model.py:8"):
            mul = aten.mul(x, 2, out=f32[256, 1024])
            (k,) = exp_into(mul, None)
        with jax.named_scope("model.py:9"):
            add = aten.add(k, 1, out=f32[256, 1024])
        return (add,)

A region is a function inside, just before the call that it belongs to::

    with jax.named_scope("model.py:10"):
        def true_graph_0(x):
            with jax.named_scope("model.py:10"):
                sin = aten.sin(x, out=f32[4])
            return (sin,)

        (a,) = control_flow.cond(p, true_graph_0, false_graph_0, (x,), out=(f32[4],))

The scopes carry the user's source lines into profiles and into the optimised program's metadata.
"""

from __future__ import annotations

import dataclasses
import itertools
import keyword
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box
from tpu_lowering.ir.contractions import contract
from tpu_lowering.ir.control_flow import CONTROL_FLOW, flex_attention
from tpu_lowering.ir.dropped_attention import dropped_attention, dropped_attention_gradients
from tpu_lowering.ir.kernels import Kernel, kernel_call
from tpu_lowering.ir.operators import ALLOCATIONS
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.random import Like, draw
from tpu_lowering.ir.regions import Region, modules, regions_of
from tpu_lowering.ir.types import ELEMENT_TYPES, TensorType
from tpu_lowering.lower.families import DRAWS, TABLE
from tpu_lowering.lower.own_operators import OWN
from tpu_lowering.lower.precision import Multiplies, Precision

IMPORTED = ("aten", "box", "control_flow", "read_box", "undefined", "write_box")
IGNORED = ("device", "layout", "pin_memory", "memory_format", "non_blocking")


@dataclasses.dataclass(frozen=True)
class Source:
    """Generated code.

    Attributes:
        imports: the start of a Python module.
        definitions: the rest, which takes the kernels from a function ``kernel`` of their names, and defines a function
            of the program's name: of the program's inputs, then its constants, it returns a tuple of its results.
        kernels: the kernels it calls, by the names it uses.
    """

    imports: str
    definitions: str
    kernels: dict[str, Kernel]

    @property
    def text(self) -> str:
        """The whole module."""
        return self.imports + self.definitions


LIBRARIES = ("import jax", "import torch")


def generate(
    program: Program,
    poison: bool = False,
    precision: Precision = Precision(),
    libraries: Sequence[str] = LIBRARIES,
) -> Source:
    """Writes the source of a program.

    Args:
        program: a lowered program.
        poison: fill undefined memory, and fresh buffers that kernels are given, with NaN.
        precision: of the user's products of float32; only what is not exact is written down.
        libraries: imports of what is not this package.

    Raises:
        TpuLoweringError: TL310 for a call with an argument that is no part of a graph, and not written as Python.
    """
    return _Writer(program, poison, precision, libraries).write()


class _Writer:
    def __init__(self, program: Program, poison: bool, precision: Precision, libraries: Sequence[str]) -> None:
        self.program = program
        self.libraries = libraries
        self.poison = poison
        self.precision = precision
        self.kernels: dict[str, Kernel] = {}
        self.names: dict[fx.Node | Kernel, str] = {}
        self.regions: dict[Region, str] = {}
        self.used_names: set[str] = {program.name, "jax", "torch", *IMPORTED}
        self.used_names |= {function.__name__ for function in OWN}
        self.used_names |= {element.name for element in ELEMENT_TYPES} | set(keyword.kwlist)

    def write(self) -> Source:
        arguments = [self._name(node) for node in self.program.input_nodes()]
        named: dict[tuple[fx.GraphModule, str], str] = {}
        for module in modules(self.program.module):
            for node in module.graph.nodes:
                if node.op == "get_attr":
                    key = (module, str(node.target))
                    named[key] = self.names[node] = named.get(key) or self._name(node)
        lines = self._definition(self.program.name, [*arguments, *named.values()], self.program.module.graph)
        return Source(_text(self._imports()), _text([*self._kernel_names(), "", "", *lines]), dict(self.kernels))

    def _definition(self, name: str, arguments: list[str], graph: fx.Graph) -> list[str]:
        """The definition of a graph's function."""
        body = self._body([node for node in graph.nodes if node.op == "call_function"])
        results = "".join(f"{self.names[node]}, " for node in graph.output_node().args[0]).rstrip()  # type: ignore[union-attr]
        return [f"def {name}({', '.join(arguments)}):", *_indented([*body, f"return ({results})"])]

    def _imports(self) -> list[str]:
        parts = [module.graph for module in modules(self.program.module)]
        calls = sum(len(graphs.kernel_calls(graph)) for graph in parts)
        count = sum(node.op == "call_function" for graph in parts for node in graph.nodes)
        types = ", ".join(element.name for element in ELEMENT_TYPES)
        return [
            f'"""{self.program.name}: {count} operations, {calls} kernel calls. Generated by tpu_lowering."""',
            "",
            *self.libraries,
            "",
            f"from tpu_lowering.codegen.names import {', '.join(IMPORTED)}",
            *self._rare_names(),
            f"from tpu_lowering.ir.types import {types}",
        ]

    def _kernel_names(self) -> list[str]:
        return [
            f'{name} = kernel("{name}")' + (f"  # {kernel.where}" if kernel.where else "")
            for name, kernel in self.kernels.items()
        ]

    def _rare_names(self) -> list[str]:
        targets = {node.target for part in modules(self.program.module) for node in part.graph.nodes}
        used = [f.__name__ for f in OWN if f in targets and f.__name__ not in IMPORTED]
        return [f"from tpu_lowering.codegen.names import {', '.join(used)}"] if used else []

    def _body(self, nodes: list[fx.Node]) -> list[str]:
        lines: list[str] = []
        written = [node for node in nodes if not self._is_unpacking(node)]
        for scope, group in itertools.groupby(written, key=_scope):
            lines.append(f'with jax.named_scope("{scope}"):')
            lines += _indented([line for node in group for line in (*self._regions(node), self._statement(node))])
        return lines

    def _regions(self, node: fx.Node) -> list[str]:
        """Definitions of the functions that a call is given."""
        lines: list[str] = []
        for region in regions_of(node):
            self.regions[region] = self._unique(region.name)
            arguments = [self._name(placeholder) for placeholder in region.placeholders()]
            lines += [*self._definition(self.regions[region], arguments, region.module.graph), ""]
        return lines

    def _is_unpacking(self, node: fx.Node) -> bool:
        """A ``getitem`` needs no line: its name is a target of the statement that makes the tuple."""
        return node.target is operator.getitem

    def _name(self, node: fx.Node) -> str:
        name = self._unique(node.name)
        self.names[node] = name
        return name

    def _unique(self, wanted: str) -> str:
        wanted = "".join(c if c.isalnum() or c == "_" else "_" for c in wanted)
        name = next(
            n
            for n in itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
            if n not in self.used_names
        )
        self.used_names.add(name)
        return name

    def _kernel_name(self, kernel: Kernel) -> str:
        if kernel not in self.names:
            self.names[kernel] = self._unique(kernel.name.replace("::", "_"))
            self.kernels[self.names[kernel]] = kernel
        return self.names[kernel]

    def _statement(self, node: fx.Node) -> str:
        if node.target is kernel_call:
            kernel = graphs.kernel_of(node)
            given = [
                (self._undefined(slot.type) if self.poison else "None") if operand is None else self.names[operand]
                for operand, slot in zip(graphs.operands_of(node), kernel.operands, strict=True)
            ]
            return f"{self._targets(node, len(kernel.results))} = {self._kernel_name(kernel)}({', '.join(given)})"
        if self.poison and node.target in ALLOCATIONS:
            return f"{self._name(node)} = {self._undefined(graphs.type_of(node))}"
        given = node.args if node.target is not draw else [a for a in node.args[1:] if not isinstance(a, Like)]
        named = {key: value for key, value in node.kwargs.items() if key not in IGNORED}
        try:
            arguments = [*map(self._value, given), *(f"{key}={self._value(value)}" for key, value in named.items())]
        except _Unwritable as error:
            raise _unwritable(node, error.args[0]) from None
        level = self.precision.of(_multiplies(node))
        arguments += [f'precision="{level}"'] if level != "highest" else []
        value = node.meta["val"]
        if isinstance(value, (tuple, list)):
            targets, out = self._targets(node, len(value)), f"({', '.join(map(_type, value))},)"
        else:
            targets, out = self._name(node), _type(value)
        return f"{targets} = {_function(node)}({', '.join([*arguments, f'out={out}'])})"

    def _undefined(self, type_: TensorType) -> str:
        return f"undefined({type_!r})"

    def _targets(self, node: fx.Node, count: int) -> str:
        """Names for the items of a tuple; ``_`` for one that nobody uses."""
        names = ["_"] * count
        for user in node.users:
            assert user.target is operator.getitem and isinstance(user.args[1], int)
            known = names[user.args[1]]
            if known == "_":
                names[user.args[1]] = self._name(user)
            else:
                self.names[user] = known
        return f"({', '.join(names)},)"

    def _value(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, Region):
            return self.regions[value]
        if isinstance(value, (list, tuple)):
            inside = ", ".join(self._value(item) for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside},)" if value else "()"
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if isinstance(value, complex):
            return f'complex("{value}")'
        if isinstance(value, (torch.device, torch.memory_format, torch.layout)):
            return "None"
        if isinstance(value, (int, float, str, torch.dtype, Box)) or value is None:
            return repr(value)
        raise _Unwritable(value)


class _Unwritable(Exception):
    """A value that is no Python literal, and has no name in generated code."""


def _unwritable(node: fx.Node, value: Any) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL310",
        str(node.target),
        f"expected tensors, numbers, texts, types and lists of them as arguments, got {type(value).__name__}",
        'keep the call out of the program, with options={"fallback": "eager"}',
        graphs.source_line(node),
    )


def _scope(node: fx.Node) -> str:
    """The user's source line as ``file.py:line``, or the module where there is none."""
    return graphs.place(node).partition(" in ")[0].replace('"', "") or "tpu_lowering"


def _function(node: fx.Node) -> str:
    target: Any = node.args[0] if node.target is draw else node.target
    if target in OWN:
        return target.__name__
    if target in CONTROL_FLOW:
        return f"control_flow.{target.__name__}"
    return f"aten.{(DRAWS if node.target is draw else TABLE)[target].name}"


def _multiplies(node: fx.Node) -> Multiplies:
    """What a node's products are, if they are the user's."""
    if node.target in (flex_attention, contract, dropped_attention, dropped_attention_gradients):
        return "matrices"
    return TABLE[node.target].multiplies if node.target in TABLE else ""  # type: ignore[index]


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]


def _type(value: Any) -> str:
    return repr(TensorType.of(value)) if isinstance(value, torch.Tensor) else "None"
