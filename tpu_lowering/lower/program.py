"""The last step on the graph: results in the layout of eager, and a row of the table for every node."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import read_box, write_box
from tpu_lowering.ir.collectives import COLLECTIVES
from tpu_lowering.ir.contractions import contract
from tpu_lowering.ir.control_flow import CONTROL_FLOW
from tpu_lowering.ir.convolutions import convolve_channels
from tpu_lowering.ir.dropped_attention import dropped_attention, dropped_attention_gradients
from tpu_lowering.ir.intervals import interval_sums
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.materialized import materialize, together
from tpu_lowering.ir.mesh import mesh_of
from tpu_lowering.ir.operators import SCATTERS, is_fill
from tpu_lowering.ir.programs import Program, Signature, dense_order
from tpu_lowering.ir.random import derive_key, draw, pack_key, unpack_key
from tpu_lowering.ir.regions import modules
from tpu_lowering.ir.shardings import constrain
from tpu_lowering.lower.families import DRAWS, TABLE
from tpu_lowering.lower.table import Limit

aten = compat.aten
OWN = (
    kernel_call, read_box, write_box, contract, convolve_channels, interval_sums, materialize, together, derive_key,
    pack_key, unpack_key, constrain, dropped_attention, dropped_attention_gradients, operator.getitem,
)  # fmt: skip


def make_program(name: str, module: fx.GraphModule, edge: Signature) -> Program:
    """Makes a program of a rewritten graph, in place.

    A dense result whose strides are not row-major leaves the program permuted into storage order, so
    that the runtime's view of it needs no copy.

    Raises:
        TpuLoweringError: TL301 for an operator that has no row in the table.
    """
    graph = module.graph
    output = graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    for index, order in enumerate(orders_in_memory(edge, [graphs.type_of(result).shape for result in results])):
        if order is not None:
            with graph.inserting_before(output):
                results[index] = graphs.call(graph, aten.permute.default, results[index], list(order))
    output.args = (tuple(results),)
    graphs.eliminate_dead_code(graph)
    for part in modules(module):
        _name_zeros(part.graph)
        _name_equal_elements(part.graph)
        graphs.eliminate_dead_code(part.graph)
        for node in part.graph.nodes:
            if node.op == "call_function" and not (_has_rule(node) and _is_within_limits(node)):
                raise no_lowering(node)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = tuple(at for at, node in enumerate(placeholders) if node.users)
    drawn = tuple(node.meta["drawn"] for node in placeholders if "drawn" in node.meta)
    return Program(inputs, edge, drawn, name=name, module=module, mesh=mesh_of(module))


def orders_in_memory(edge: Signature, shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...] | None]:
    """For each computed result, by its shape: the order of its dimensions in memory; None for row by row, or gaps."""
    strides = [spec.stride for spec in edge.outputs if spec.is_computed]
    found: list[tuple[int, ...] | None] = []
    for shape, stride in zip(shapes, strides, strict=False):  # values of mutated arguments come after the results
        assert stride is not None
        order = dense_order(shape, stride)
        found.append(None if order is None or order == tuple(range(len(order))) else order)
    return found


def _name_zeros(graph: fx.Graph) -> None:
    """Sums with tensors of zeros as sums with 0.0, which the row computes as eager does, -0.0 included, in place."""
    for node in graph.nodes:
        if not graphs.is_call(node, aten.add.Tensor) or node.kwargs.get("alpha", 1) != 1:
            continue
        for value, other in (node.args, reversed(node.args)):
            same = isinstance(value, fx.Node) and graphs.type_of(value) == graphs.type_of(node)
            if same and _is_zero(other) and node.meta["val"].dtype.is_floating_point:
                node.target, node.args = aten.add.Scalar, (value, 0.0)
                break


def _name_equal_elements(graph: fx.Graph) -> None:
    """Tables of zeros that rows are added to as one zero, in place: the row of the table makes them, and knows."""
    for node in graph.nodes:
        if node.target in SCATTERS:
            given = graphs.bound(node)
            table, dtype = given["self"], node.meta["val"].dtype
            if given["accumulate"] and graphs.type_of(table).ndim and dtype.is_floating_point and _is_zero(table):
                with graphs.inserting_for(node):
                    zero = graphs.call(graph, aten.full.default, [], 0.0, dtype=dtype)
                node.replace_input_with(table, zero)


def _is_zero(node: Any) -> bool:
    """Whether every element of a node is 0.0: a fill, or a view of one."""
    while isinstance(node, fx.Node) and node.target in (aten.expand.default, aten.reshape.default, read_box):
        node = node.args[0]
    if not is_fill(node) or node.target in (aten.ones.default, aten.ones_like.default, aten.new_ones.default):
        return False
    given = graphs.bound(node)
    return str(float(given.get("fill_value") or 0.0)) == "0.0"


def _has_rule(node: fx.Node) -> bool:
    if any(node.target in known for known in (OWN, CONTROL_FLOW, COLLECTIVES)):
        return True
    return node.args[0] in DRAWS if node.target is draw else node.target in TABLE


def _limit(node: fx.Node) -> Limit | None:
    row = TABLE.get(node.target)  # type: ignore[arg-type]
    return None if row is None else row.limit


def _is_within_limits(node: fx.Node) -> bool:
    limit = _limit(node)
    return limit is None or limit.holds(node)


def no_lowering(node: fx.Node) -> errors.TpuLoweringError:
    """The refusal of an operator that has no row in the lowering table."""
    if isinstance(node.target, compat.OpOverload) and node.target.namespace not in ("aten", "prims"):
        from tpu_lowering.normalise.functionalized import no_implementation

        return no_implementation(str(node.target), graphs.source_line(node))
    return errors.refuse(
        "TL301",
        str(node.target),
        _expected(node),
        "run it in eager torch, between two programs, with options={'fallback': 'eager'}, or write it with other "
        "operators",
        graphs.source_line(node),
    )


def _expected(node: fx.Node) -> str:
    limit = _limit(node)
    if limit is not None:
        return limit.words(node)
    return f"expected an operator in the lowering table, got {node.target}"
