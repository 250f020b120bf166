"""``fallback="eager"``: what no program can compute runs in eager torch, between programs.

That is an operator without a JAX implementation, and one whose result's shape depends on data (``nonzero``,
``masked_select``, ``item``), where Dynamo was told to keep such operators in its graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.passes.split_module import split_module

from tpu_lowering import compat
from tpu_lowering.capture.gradients import called_overload
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.operators import ALLOCATIONS
from tpu_lowering.ir.printer import target_name
from tpu_lowering.kernels import registry
from tpu_lowering.lower.families import DRAWS, TABLE
from tpu_lowering.normalise import effects, randomness
from tpu_lowering.normalise.decompositions import decompositions

Compile = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


def has_no_implementation(node: fx.Node) -> bool:
    """Whether a node of Dynamo's graph calls an operator that we can neither lower nor decompose."""
    target = called_overload(node) if node.op == "call_function" else None
    if target is None or target.namespace in ("aten", "prims"):
        return calls_without_row(node)
    return registry.implementation(target) is None and not compat.can_decompose(target)


def calls_without_row(node: fx.Node) -> bool:
    """Whether a function of torch's, taken apart as AOTAutograd takes it apart, calls an ATen operator without a row.

    It is run on fake tensors, copies of those that Dynamo ran it on. What cannot be run so is taken to have rows.
    """
    if node.op not in ("call_function", "call_method") or "example_value" not in node.meta:
        return False
    args, kwargs = compat.map_arg((node.args, node.kwargs), lambda used: used.meta.get("example_value"))
    leaves = compat.tree_leaves((args, kwargs))
    mode = next((leaf.fake_mode for leaf in leaves if isinstance(leaf, compat.FakeTensor)), None)
    if mode is None:
        return False
    found = _Called()
    try:
        with torch.no_grad(), mode, compat.handling(found):
            args, kwargs = compat.tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, (args, kwargs))
            target: Any = node.target
            (target if callable(target) else getattr(type(args[0]), target))(*args, **kwargs)
    except Exception:
        return False
    return bool(found.without_row)


class _Called:
    """Takes operators apart, and keeps those that have no row."""

    def __init__(self) -> None:
        self.table = decompositions()
        self.without_row: list[compat.OpOverload] = []

    def __call__(self, context: Any, overload: Any, args: Any, kwargs: Any) -> Any:
        if overload in self.table:
            with context:
                result = self.table[overload](*args, **kwargs)
            if result is not NotImplemented:
                return result
        schema = compat.schema(overload)
        is_functional = not schema.is_mutable and all(result.alias_info is None for result in schema.returns)
        if is_functional and overload.namespace in ("aten", "prims") and not has_rule(overload):
            self.without_row.append(overload)
        return overload(*args, **kwargs)


def has_rule(overload: compat.OpOverload) -> bool:
    """Whether an operator is lowered as it is, or by a step of normalising."""
    known = (TABLE, DRAWS, randomness.OPERATORS, ALLOCATIONS, effects.CHECKS, effects.OF_NOTHING)
    return any(overload in names for names in known) or registry.implementation(overload) is not None


def runs_in_eager(node: fx.Node) -> bool:
    """Whether a node of Dynamo's graph runs in eager torch."""
    if has_no_implementation(node) or node.meta.get("unbacked_bindings"):
        return True
    value = node.meta.get("example_value")  # a size made of such a result stays beside it: the split binds it there
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) and bool(free_unbacked_symbols(value))


def compile_around(
    module: fx.GraphModule,
    examples: Sequence[Any],
    compile_part: Compile,
    tell: Callable[[Sequence[Action]], None] = lambda actions: None,
) -> Callable[..., Any]:
    """Cuts a graph at operators that run in eager torch; the parts between are compiled, each as it would be alone.

    Args:
        module: Dynamo's graph.
        examples: its arguments.
        compile_part: compiles a part.
        tell: told of what runs in eager torch.

    Returns:
        A callable of the graph's arguments. A graph without such operators is compiled whole.
    """
    left = {node: None for node in module.graph.nodes if runs_in_eager(node)}
    if not left:
        return compile_part(module, examples)
    tell([_remark(node) for node in left if isinstance(node.meta.get("example_value"), torch.Tensor)])
    parts: dict[fx.Node, int] = {}
    runs = itertools.groupby(list(module.graph.nodes), key=left.__contains__)
    eager: set[str] = set()
    for number, (is_eager, nodes) in enumerate(runs):
        parts.update(dict.fromkeys(nodes, number))
        if is_eager:
            eager.add(f"submod_{number}")
    split = split_module(
        module,
        module,  # type: ignore[arg-type]
        parts.__getitem__,
        keep_original_order=True,
        tuple_return=True,
    )
    for name, part in list(split.named_children()):
        if name.startswith("submod_") and name not in eager:
            setattr(split, name, _Part(part, compile_part))  # type: ignore[arg-type]
    return split


def _remark(node: fx.Node) -> Action:
    """On a node that runs in eager torch."""
    why = "the shape of its result depends on data" if node.meta.get("unbacked_bindings") else "it has no lowering"
    reason = f"{target_name(called_overload(node) or node.target)}: {why}"
    return Action("eager", node.name, graphs.place(node), "TL516", reason, 0)


class _Part(torch.nn.Module):
    """A compiled part: compiled when it is called, once for each kind of arguments that it meets."""

    def __init__(self, part: fx.GraphModule, compile_part: Compile) -> None:
        super().__init__()
        self.part, self.compile_part = part, compile_part
        self.compiled: dict[Hashable, Callable[..., Any]] = {}

    def forward(self, *arguments: Any) -> Any:
        key = (torch.is_grad_enabled(), *_kinds(arguments))
        if key not in self.compiled:
            self.compiled[key] = self.compile_part(self.part, arguments)
        return self.compiled[key](*arguments)


def _kinds(arguments: Sequence[Any]) -> list[Hashable]:
    """What AOTAutograd counts on about arguments, without Dynamo's guards: types, layouts, shared memory."""
    kinds: list[Hashable] = []
    memory: dict[int, int] = {}
    for at, value in enumerate(arguments):
        if isinstance(value, torch.Tensor):
            first = memory.setdefault(value.untyped_storage().data_ptr(), at)
            layout = (value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
            kinds.append((layout, value.requires_grad, first))
        else:
            kinds.append((type(value), value))
    return kinds
