"""Arguments that a program updates in part: their new value is the old one with some elements written."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import write_box
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.programs import Program

aten = compat.aten

INTO_FIRST: frozenset[Any] = frozenset((
    write_box, aten.index_put.default, aten.index_copy.default, aten.index_add.default, aten.scatter_add.default,
    aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce, aten.scatter_reduce.two,
    aten.index_fill.int_Scalar, aten.index_fill.int_Tensor, aten.as_strided_scatter.default, aten.reshape.default,
    aten.permute.default,
))  # fmt: skip
"""Operators whose result is their first argument with elements written, or the same elements."""


def updated_in_part(program: Program) -> tuple[int, ...]:
    """Positions in ``Signature.mutated`` of arguments that the program takes and whose value it updates in part."""
    values = program.output_nodes()[len(program.output_nodes()) - len(program.signature.mutated) :]
    placeholders = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    pairs = [(value, placeholders[position]) for value, position in zip(values, program.signature.mutated, strict=True)]
    taken = program.input_nodes()
    return tuple(at for at, (value, old) in enumerate(pairs) if old in taken and value is not old is _source(value))


def _source(value: fx.Node) -> fx.Node:
    """What a value is an update of; itself, if it is none."""
    while True:
        earlier = _updated(value)
        if earlier is None:
            return value
        value = earlier


def _updated(value: fx.Node) -> fx.Node | None:
    if value.target in INTO_FIRST:
        first = value.args[0]
        return first if isinstance(first, fx.Node) else None
    if value.target is operator.getitem and graphs.is_call(value.args[0], kernel_call):
        call: Any = value.args[0]
        slots = zip(graphs.kernel_of(call).operands, graphs.operands_of(call), strict=True)
        return next((operand for slot, operand in slots if slot.result == value.args[1]), None)
    return None
