"""Checks taken out, and what writes to memory refused: from here on dead code is what nobody uses.

Checks of data that AOTAutograd orders by tokens:

::

    %out = linalg_inv_ex(%x)                                  %out = linalg_inv_ex(%x)
    %new = with_effects(%token, _linalg_check_errors, %info)  ->
    return (getitem(%new, 0), ...)                            return (zeros([0]), ...)

Eager raises there if a matrix is singular; a program does not look at its data, and its result is NaN.
AOTAutograd calls the graph with None for a token and drops the tokens it returns. Checks of sizes and dtypes hold
when a graph has been specialised. Assertions of values were taken out while it was captured
(``capture.effects``); what is left of them, in control flow or for a program that is not run here, is dropped.
"""

from __future__ import annotations

import operator

from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs

aten = compat.aten

CHECKS = (aten._linalg_check_errors.default,)
OF_NOTHING: tuple[compat.OpOverload, ...] = (
    aten._assert_async.msg, aten._assert_scalar.default, aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default,
)  # fmt: skip


def drop_checks(graph: fx.Graph) -> None:
    """Takes the checks out, in place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in OF_NOTHING:
            graph.erase_node(node)
        if not graphs.is_call(node, compat.with_effects) or node.args[1] not in CHECKS:
            continue
        with graphs.inserting_for(node):
            token = graphs.call(graph, aten.zeros.default, [0])
        for user in list(node.users):
            assert graphs.is_call(user, operator.getitem) and user.args[1] == 0, "a check has no result but its token"
            graphs.replace(user, token)
        graph.erase_node(node)


def refuse_writes(graph: fx.Graph) -> None:
    """Checks that no operator is left that writes to its arguments: a program has values, not memory.

    Raises:
        TpuLoweringError: TL308.
    """
    for node in graph.nodes:
        schema = compat.schema(node.target)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            raise errors.refuse(
                "TL308",
                str(node.target),
                "expected operators that give new values, as AOTAutograd writes them, got one that writes to its "
                "arguments",
                "do it in eager torch, outside of the compiled function",
                graphs.source_line(node),
            )
