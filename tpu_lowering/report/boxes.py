"""A graph as boxes: kernels, allocations, fills, what is written in place, and the programs that they are in."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse import splits
from tpu_lowering.ir import graphs, random
from tpu_lowering.ir.collectives import EXCHANGES
from tpu_lowering.ir.control_flow import CONTROL_FLOW
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.operators import is_allocation, is_fill
from tpu_lowering.ir.printer import target_name
from tpu_lowering.ir.types import TensorType, element_type


@dataclasses.dataclass(frozen=True)
class Box:
    """One node of a graph.

    Attributes:
        name: in the graph.
        kind: "argument", "constant", "allocation", "fill", "kernel" (the user's), "generated" (a kernel that a pass
            made), "collective", "control flow", "view", "operation" or "result".
        text: the operator, or the kernel's name.
        type: of its value: ``f32[4, 8]``.
        nbytes: of its value.
        where: the user's source line, ``file.py:line in function: code``, or the module.
        operands: names of the nodes that it takes.
        written: names of the nodes whose memory it writes in place: as it was written, the copies that functionalizing
            makes are not there.
        part: number of the program that torch_tpu's split rule puts it into, from 0; None for what computes nothing.
    """

    name: str
    kind: str
    text: str
    type: str
    nbytes: int
    where: str
    operands: tuple[str, ...]
    written: tuple[str, ...] = ()
    part: int | None = None


@dataclasses.dataclass(frozen=True)
class ProgramGraphs:
    """A program's graph, as its author wrote it and as it was compiled.

    Attributes:
        program: its name.
        written: as it was written, after normalising.
        compiled: after all passes; () where compiling did not come so far.
    """

    program: str
    written: tuple[Box, ...]
    compiled: tuple[Box, ...] = ()


def boxes_of(graph: fx.Graph, split: bool) -> tuple[Box, ...]:
    """The boxes of a normalised graph, in its order. With ``split`` each is in a program of torch_tpu's split rule,
    else all are in one."""
    parts = splits.partition(graph, splits.RULES["torch_tpu" if split else "jax"])
    part_of = {node: number for number, part in enumerate(parts) for node in part}
    found: list[Box] = []
    where = graphs.place_of(graph)
    for node in graph.nodes:
        where = graphs.place(node) or where  # what a pass added is where the node before it is
        if node.target is not operator.getitem:
            found.append(_box(node, where, part_of.get(node), split))
    return tuple(found)


def _box(node: fx.Node, where: str, part: int | None, as_written: bool) -> Box:
    kind, text = _kind(node)
    memory = {one: _memory(one, as_written) for one in _written(node)}
    operands = tuple(dict.fromkeys(memory.get(one, _behind(one)).name for one in node.all_input_nodes))
    written = tuple(dict.fromkeys(one.name for one in memory.values()))
    type_, nbytes = _type(node.meta.get("val"))
    return Box(node.name, kind, text, type_, nbytes, where, operands, written, part)


def _behind(node: fx.Node) -> fx.Node:
    """The call that a value is a result of."""
    while node.target is operator.getitem:
        node = node.all_input_nodes[0]
    return node


def _written(node: fx.Node) -> list[fx.Node]:
    """The operands that a kernel call writes in place."""
    if not graphs.is_call(node, kernel_call):
        return []
    given = graphs.operands_of(node)
    return [one for at in splits.aliased_operands(node) if (one := given[at]) is not None]


def _memory(node: fx.Node, as_written: bool) -> fx.Node:
    """The call that makes the memory of what is written in place: behind views, and behind the copies that
    functionalizing makes of what the author has written to itself."""
    copies = (compat.aten.clone.default,) if as_written else ()
    while node.op == "call_function" and (splits.is_view(node) or node.target in copies):
        node = node.all_input_nodes[0]
    return _behind(node)


_OF_OP = {"placeholder": "argument", "get_attr": "constant", "output": "result"}


def _kind(node: fx.Node) -> tuple[str, str]:
    """A node's kind, and what it is called."""
    if node.op in _OF_OP:
        return _OF_OP[node.op], _OF_OP[node.op]
    if graphs.is_call(node, kernel_call):
        kernel = graphs.kernel_of(node)
        return "generated" if kernel.generated else "kernel", kernel.name
    target: Any = node.args[0] if node.target is random.draw else node.target
    text = target_name(target).removeprefix("aten.").removesuffix(".default").removesuffix(".Tensor")
    kinds = (
        ("allocation", is_allocation(node)),
        ("fill", is_fill(node)),
        ("collective", target in EXCHANGES),
        ("control flow", target in CONTROL_FLOW),
        ("view", splits.is_view(node)),
    )
    return next((kind for kind, holds in kinds if holds), "operation"), text


def _type(value: Any) -> tuple[str, int]:
    """The types of a value's tensors, and their bytes."""
    tensors = [leaf for leaf in compat.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    known = [tensor for tensor in tensors if element_type(tensor.dtype) and all(type(n) is int for n in tensor.shape)]
    types = [TensorType.of(tensor) for tensor in known]
    return ", ".join(map(repr, types)), sum(type_.nbytes for type_ in types)
