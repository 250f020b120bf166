"""Checks of data that AOTAutograd orders by tokens, taken out.

::

    %out = linalg_inv_ex(%x)                                  %out = linalg_inv_ex(%x)
    %new = with_effects(%token, _linalg_check_errors, %info)  ->
    return (getitem(%new, 0), ...)                            return (zeros([0]), ...)

Eager raises there if a matrix is singular; a program does not look at its data, and its result is NaN.
AOTAutograd calls the graph with None for a token and drops the tokens it returns.
"""

from __future__ import annotations

import operator

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs

aten = compat.aten

CHECKS = (aten._linalg_check_errors.default,)


def drop_checks(graph: fx.Graph) -> None:
    """Takes the checks out, in place."""
    for node in list(graph.nodes):
        if not graphs.is_call(node, compat.with_effects) or node.args[1] not in CHECKS:
            continue
        with graphs.inserting_for(node):
            token = graphs.call(graph, aten.zeros.default, [0])
        for user in list(node.users):
            assert graphs.is_call(user, operator.getitem) and user.args[1] == 0, "a check has no result but its token"
            graphs.replace(user, token)
        graph.erase_node(node)
