"""Operands of one call that lie in each other's memory, of which one is written: refused.

A program gives every operand a value. For a ``kernel_op`` that is what eager does too: it computes all new values, then
writes them back, in the order of its schema. What another library's operator makes of operands that overlap depends on
the order in which its own code touches them.

Whether two operands are of one memory is known while a graph is captured. Later, equal values may have become one node:
what was found is kept with the call.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.analyse import overlaps
from tpu_lowering.ir import graphs
from tpu_lowering.ir.functionalized_calls import is_functionalized

NamedOperand = tuple[str, fx.Node, str]
"""An argument's name, its value, and the key of its memory: that of the base it is a view of, or its own."""

_META = "shared_memory"


def mark_shared_memory(module: fx.GraphModule) -> None:
    """Keeps with each call of a mutating operator which of its tensors are of one memory: pairs of keys."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(part := getattr(module, str(node.target), None), fx.GraphModule):
            mark_shared_memory(part)
        elif node.op == "call_function" and _writes(node):
            found = [(key, memory) for key, leaf in _tensors(node.kwargs) if (memory := _memory(leaf)) is not None]
            pairs = itertools.combinations(found, 2)
            node.meta[_META] = frozenset((a, b) for (a, first), (b, second) in pairs if first == second)


def _writes(node: fx.Node) -> bool:
    return is_functionalized(node) or "helion_kernel_wrapper" in str(node.target)


def _tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, fx.Node]]:
    """The nodes among arguments, each with a key: ``x``, ``outs[1]``."""
    for name, value in given.items():
        if isinstance(value, fx.Node):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value)
        elif isinstance(value, (list, tuple)):
            yield from _tensors({f"{name}[{at}]": item for at, item in enumerate(value)})


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return compat.storage_number(value) if isinstance(value, torch.Tensor) else None


def operands(bound: Mapping[str, Any]) -> list[NamedOperand]:
    """Arguments that are memory of their own, or were when the graph was captured."""
    return [(key, node, key) for key, node in _tensors(bound)]


def refuse_overlaps(kernel: str, call: fx.Node, written: Sequence[NamedOperand], read: Sequence[NamedOperand]) -> None:
    """Checks that what is written shares no element with another operand.

    Args:
        kernel: its name.
        call: the call as it was captured.
        written, read: its operands.

    Raises:
        TpuLoweringError: TL214.
    """
    shared = call.meta.get(_META, frozenset())
    for at, (name, node, key) in enumerate(written):
        for other, value, its in (*written[at + 1 :], *read):
            of_one = key == its or (key, its) in shared or (its, key) in shared
            if of_one and overlaps.share_elements(node.meta["val"], value.meta["val"]):
                raise errors.refuse(
                    "TL214",
                    f"arguments '{name}' and '{other}' of {kernel}",
                    f"expected memory of its own for '{name}', which is written, got elements that both have: what "
                    "eager makes of them depends on the order in which the operator's own code touches them",
                    "pass a .clone() of one of them, and copy it back after the call if it is written",
                    graphs.source_line(call),
                )


def refuse_repeats(kernel: str, call: fx.Node, written: Sequence[NamedOperand]) -> None:
    """Checks that what is written has a place for each of its elements; eager refuses it too.

    Raises:
        TpuLoweringError: TL214.
    """
    for name, node, _ in written:
        if overlaps.repeats_elements(node.meta["val"]):
            raise errors.refuse(
                "TL214",
                f"argument '{name}' of {kernel}",
                "expected one place in memory for each element that is written, got an expanded tensor, whose elements "
                "share places",
                "write to a .clone() of it",
                graphs.source_line(call),
            )
