"""A backend whose graphs a test rewrites, and looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd

from tpu_lowering.ir.operators import makes_memory


def aot(*rewrites: Callable[[torch.fx.GraphModule], Any], after: list[torch.fx.GraphModule] | None = None) -> Any:
    """A backend like ``aot_eager`` that rewrites its graphs."""

    def compiler(module: torch.fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        for rewrite in rewrites:
            rewrite(module)
        module.graph.lint()
        module.recompile()
        if after is not None:
            after.append(module)

        def boxed(arguments: list[Any]) -> Any:
            return module(*arguments)

        boxed._boxed_call = True
        return boxed

    return aot_autograd(fw_compiler=compiler, keep_inference_input_mutations=True)


def made_in(graph: torch.fx.Graph) -> int:
    """How many allocations and fills a graph has."""
    return sum(makes_memory(node) for node in graph.nodes)
