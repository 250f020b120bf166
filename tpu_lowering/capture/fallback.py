"""``fallback="eager"``: operators without a JAX implementation run in eager torch, between programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.passes.split_module import split_module

from tpu_lowering.kernels import registry

Compile = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


def has_no_implementation(node: fx.Node) -> bool:
    """Whether a node of Dynamo's graph calls an operator that we can neither lower nor decompose."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if target.namespace in ("aten", "prims") or registry.implementation(target) is not None:
        return False
    return not target._can_decompose()


def compile_around(module: fx.GraphModule, examples: Sequence[Any], compile_part: Compile) -> Callable[..., Any]:
    """Cuts a graph at such operators; the parts between them are compiled, each as it would be alone.

    Returns:
        A callable of the graph's arguments. A graph without such operators is compiled whole.
    """
    eager = {node for node in module.graph.nodes if has_no_implementation(node)}
    if not eager:
        return compile_part(module, examples)
    parts: dict[fx.Node, int] = {}
    current = 0
    for node in module.graph.nodes:
        starts_part = node in eager or (parts and previous in eager)  # noqa: F821  (set below, on the first turn)
        current += bool(starts_part)
        parts[node], previous = current, node  # noqa: F841
    eager_parts = {f"submod_{parts[node]}" for node in eager}
    split = split_module(module, module, lambda node: parts[node], keep_original_order=True)  # type: ignore[arg-type]
    for name, part in list(split.named_children()):
        if name not in eager_parts and isinstance(part, fx.GraphModule):
            setattr(split, name, _Part(part, compile_part))
    return split


class _Part(torch.nn.Module):
    """A compiled part, compiled when its first arguments are known."""

    def __init__(self, part: fx.GraphModule, compile_part: Compile) -> None:
        super().__init__()
        self.part, self.compile_part = part, compile_part
        self.compiled: Callable[..., Any] | None = None

    def forward(self, *arguments: Any) -> Any:
        if self.compiled is None:
            self.compiled = self.compile_part(self.part, arguments)
        return self.compiled(*arguments)
