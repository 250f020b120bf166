"""Graphs as text: one line a node, types on the left of nothing else, names that are stable.

``%mul: f32[4, 8] = aten.mul.Tensor(%x, 2)``; a kernel is named, never numbered. The text of equal graphs
is equal, so tests compare it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box
from tpu_lowering.ir.kernels import Kernel, kernel_call
from tpu_lowering.ir.regions import Region, regions_of
from tpu_lowering.ir.types import TensorType, element_type


def print_graph(graph: fx.Graph) -> str:
    """The text of a graph."""
    return "\n".join(line for node in graph.nodes for line in (*_region_lines(node), _line(node)))


def _region_lines(node: fx.Node) -> list[str]:
    """The graphs of a call's regions, before the call."""
    lines: list[str] = []
    for region in regions_of(node) if node.op == "call_function" else ():
        lines.append(f"region {region.name}:")
        lines += [f"    {line}" for line in print_graph(region.module.graph).splitlines()]
    return lines


def _line(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"%{node.name}: {_type(node.meta.get('val'))} = input"
    if node.op == "get_attr":
        return f"%{node.name}: {_type(node.meta.get('val'))} = constant {node.target}"
    if node.op == "output":
        return f"return {_value(node.args[0])}"
    if node.target is kernel_call:
        kernel, operands = graphs.kernel_of(node), node.args[1]
        given = ", ".join("fresh" if operand is None else _value(operand) for operand in operands)  # type: ignore[union-attr]
        return f"%{node.name}: {_type(node.meta['val'])} = kernel {kernel.name}({given})"
    arguments = [_value(argument) for argument in node.args]
    arguments += [f"{key}={_value(value)}" for key, value in node.kwargs.items() if value is not None]
    return f"%{node.name}: {_type(node.meta.get('val'))} = {target_name(node.target)}({', '.join(arguments)})"


def target_name(target: Any) -> str:
    """The name of a call's target: ``aten.mul.Tensor`` for an overload, else the function's own."""
    if isinstance(target, compat.OpOverload):
        return str(target)
    return getattr(target, "__name__", str(target))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if element_type(value.dtype) is None or not all(type(size) is int for size in value.shape):
            return f"{value.dtype}{list(value.shape)}"
        return repr(TensorType.of(value))
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_type(item) for item in value)})"
    return type(value).__name__


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_value(item) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (Kernel, Region)):
        return value.name
    if isinstance(value, Box):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format)):
        return str(value).removeprefix("torch.")
    if callable(value):
        return target_name(value)
    return repr(value)
