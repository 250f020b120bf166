"""The edge of a captured graph: results with eager's strides, and mutated inputs as results.

AOTAutograd ends a graph that mutates inputs with ``copy_(placeholder, value)`` nodes. They become further
results of the graph, and the caller of the program writes them back; nothing in the graph is mutable then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.programs import Output, Signature
from tpu_lowering.normalise import aliases
from tpu_lowering.normalise.aliases import APART, Alias, Sharing

aten = compat.aten


def separate_signature(graph: fx.Graph, sharing: Sharing = APART, verify: bool = False) -> Signature:
    """Takes the ``copy_`` epilogue and results that the program does not compute out of a graph, in place.

    Args:
        graph: a specialised graph.
        sharing: what is known of the memory of its results.
        verify: whether to hold the places of results that are not computed against eager's.

    Returns:
        The signature; the graph's output is then one flat tuple of tensors: results, then mutated values.

    Raises:
        TpuLoweringError: TL401 for a place that is not eager's.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    final: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.copy_.default:
            target, value = node.args[:2]
            final[target] = _as_written(graph, node, target, value)
            node.replace_all_uses_with(final[target])
            graph.erase_node(node)
    output = graph.output_node()
    given: Any = output.args[0]
    results = [*given, *aliases.hidden_bases(given, aliases.find(graph, given, final, sharing), sharing)]
    found = aliases.find(graph, results, final, sharing)
    bases = aliases.positions(graph, results, found)
    saved = _saved(found, bases, sharing, len(given))
    outputs = tuple(
        _constant_or_computed(result, at in saved) if alias is None
        else alias.output(bases[alias.base], sharing.tracked and at < sharing.seen)
        for at, (result, alias) in enumerate(zip(results, found, strict=True))
    )  # fmt: skip
    for result, alias, spec in zip(results, found, outputs, strict=True):
        if verify and alias is not None and not alias.is_at(spec):
            raise _misplaced(result, spec)
    tensors = [result for result, spec in zip(results, outputs, strict=True) if spec.is_computed]
    output.args = ((*tensors, *final.values()),)
    return Signature(outputs, len(given), tuple(placeholders.index(target) for target in final))


def written_back(graph: fx.Graph) -> tuple[int, ...]:
    """Positions of the arguments that a captured graph mutates."""
    written = new_values(graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return tuple(at for at, node in enumerate(placeholders) if node in written)


def new_values(graph: fx.Graph) -> dict[fx.Node, Any]:
    """The placeholders that a captured graph mutates, and the values that they get."""
    writes = [node for node in graph.nodes if node.op == "call_function" and node.target is aten.copy_.default]
    return {node.args[0]: node.args[1] for node in writes}


def _as_written(graph: fx.Graph, node: fx.Node, target: fx.Node, value: fx.Node) -> fx.Node:
    """The value as ``copy_`` leaves it in the target: broadcast to its shape, in its dtype."""
    have, want = value.meta["val"], target.meta["val"]
    if have.shape == want.shape and have.dtype == want.dtype:
        return value
    with graph.inserting_before(node):
        new = graph.call_function(aten.copy.default, (target, value))
    new.meta = {**node.meta, "memory": None}
    return new


def _misplaced(result: fx.Node, spec: Output) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL401",
        f"result {result.name}",
        f"expected it where eager puts it in the memory that it shares, got {spec.place}",
        "this is a bug of tpu_lowering; please report it with the output of options={'dump': 'folder'}",
        graphs.source_line(result),
    )


def _saved(found: Sequence[Alias | None], bases: Mapping[Any, int], sharing: Sharing, returned: int) -> set[int]:
    """The results that nobody but a backward gets, nor a view of them."""
    if not sharing.views:
        return set()
    shown = {
        bases[alias.base] for alias in found[: sharing.seen] if alias is not None and alias.base.op != "placeholder"
    }
    return set(range(sharing.seen, returned)) - shown


def _constant_or_computed(result: Any, is_saved: bool) -> Output:
    if aliases.is_tensor(result):
        return dataclasses.replace(Output.of(result.meta["val"]), is_saved=is_saved)
    value = result.meta.get("val") if isinstance(result, fx.Node) else result
    if isinstance(result, fx.Node) and result.op == "get_attr":  # a mesh that is no argument
        value = getattr(result.graph.owning_module, str(result.target))
    if compat.is_script_object(value) and result.op == "placeholder":
        return Output.of_argument(list(result.graph.find_nodes(op="placeholder")).index(result))
    return Output(None, constant=compat.real_object(value))
