"""Higher-order operators to the control flow of ``ir.control_flow``.

====================================================  ==============================================
``cond(p, true, false, operands)``                     ``cond(p, true, false, operands)``
``while_loop(condition, body, carried, extra)``        ``while_loop(condition, body, carried, extra)``
``scan(combine, init, xs, extra)``                     ``scan(combine, init, xs, extra)``
``map_impl(f, xs, extra)``                             ``map_rows(f, xs, extra)``
``flex_attention(q, k, v, score, (..., mask), ...)``   ``flex_attention(q, k, v, score, mask, ...)``
====================================================  ==============================================

Operands that are numbers, and results that are no tensors, are constants: regions neither take nor return them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import control_flow, graphs, regions
from tpu_lowering.normalise import randomness

higher_order = torch.ops.higher_order


def normalise_control_flow(graph: fx.Graph) -> None:
    """Rewrites every call of such an operator, in place.

    Raises:
        TpuLoweringError: TL322 for a random operator in a region.
    """
    for node in list(graph.nodes):
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            for region in regions.regions_of(node):
                randomness.refuse_inside(region)
            rule(node)
    graphs.eliminate_dead_code(graph)


def _cond(node: fx.Node) -> None:
    predicate, if_true, if_false, operands = _arguments(node)
    given = _tensor_operands(operands, 0, if_true, if_false)
    _call(node, control_flow.cond, (predicate, if_true, if_false, given), _tensor_results(if_true, if_false))


def _while_loop(node: fx.Node) -> None:
    condition, body, carried, extra = _arguments(node)
    given = _tensor_operands(extra, len(carried), condition, body)
    _tensor_results(condition)
    _call(node, control_flow.while_loop, (condition, body, tuple(carried), given), _tensor_results(body))


def _scan(node: fx.Node) -> None:
    combine, init, rows, extra = _arguments(node)
    given = _tensor_operands(extra, len(init) + len(rows), combine)
    _call(node, control_flow.scan, (combine, tuple(init), tuple(rows), given), _tensor_results(combine))


def _map(node: fx.Node) -> None:
    function, rows, extra = _arguments(node)
    given = _tensor_operands(extra, len(rows), function)
    _call(node, control_flow.map_rows, (function, tuple(rows), given), _tensor_results(function))


def _flex_attention(node: fx.Node) -> None:
    query, key, value, score, block_mask, scale, _, score_extra, mask_extra = _arguments(node)
    mask = block_mask[-1]
    extras = _tensor_operands(score_extra, 5, score), _tensor_operands(mask_extra, 4, mask)
    _tensor_results(score)
    _tensor_results(mask)
    _call(node, control_flow.flex_attention, (query, key, value, score, mask, scale, *extras), [0, 1, 2])


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.args)


def _tensor_operands(operands: Any, first: int, *regions: Any) -> tuple[fx.Node, ...]:
    """The operands that are tensors; the regions, whose placeholders they are from ``first`` on, lose the others."""
    for region in regions:
        for operand, placeholder in zip(operands, region.placeholders()[first:], strict=True):
            if not isinstance(operand, fx.Node):
                _replace_by_constant(placeholder, operand)
    return tuple(operand for operand in operands if isinstance(operand, fx.Node))


def _tensor_results(*regions: Any) -> list[int]:
    """Makes regions return tuples of tensors; the positions that those had among the results of each."""
    kept: list[int] = []
    for region in regions:
        outputs = region.module.graph.output_node().args[0]
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        kept = [index for index, output in enumerate(outputs) if _is_tensor(output)]
        region.set_outputs([outputs[index] for index in kept])
        graphs.eliminate_dead_code(region.module.graph)
    return kept


def _is_tensor(output: Any) -> bool:
    return isinstance(output, fx.Node) and isinstance(output.meta.get("val"), torch.Tensor)


def _call(node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kept: list[int]) -> None:
    """Replaces a call by one that returns the results at given positions; the others are constants."""
    values = node.meta["val"]
    with graphs.inserting_for(node) as graph:
        new = graph.call_function(target, args)
    new.meta = {**node.meta, "val": tuple(values[index] for index in kept)}
    for user in list(node.users):
        assert user.target is operator.getitem and isinstance(user.args[1], int)
        if user.args[1] in kept:
            user.args = (new, kept.index(user.args[1]))
        else:
            _replace_by_constant(user, values[user.args[1]])
    graph.erase_node(node)


def _replace_by_constant(node: fx.Node, constant: Any) -> None:
    for user in list(node.users):
        args, kwargs = compat.map_arg((user.args, user.kwargs), lambda used: constant if used is node else used)
        user.args, user.kwargs = args, kwargs
    node.graph.erase_node(node)


RULES: dict[Any, Callable[[fx.Node], None]] = {
    higher_order.cond: _cond,
    higher_order.while_loop: _while_loop,
    higher_order.scan: _scan,
    higher_order.map_impl: _map,
    higher_order.flex_attention: _flex_attention,
}
