"""Captures a model with Dynamo and AOTAutograd without running it."""

from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd


def captured_graphs(model: Callable[..., Any], *inputs: Any, **options: Any) -> list[torch.fx.Graph]:
    """The functional forward graphs of one call; `model`'s results are zeros and mean nothing."""
    graphs = []

    def compiler(module: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(module.graph)
        (results,) = module.graph.output_node().args
        shapes = [(result.meta["val"].shape, result.meta["val"].dtype) for result in results]
        return make_boxed_func(lambda *_: [torch.zeros(shape, dtype=dtype) for shape, dtype in shapes])

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=aot_autograd(fw_compiler=compiler), fullgraph=True)(*inputs, **options)
    torch._dynamo.reset()
    return graphs


def kernel_calls(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if str(node.target) == "helion_kernel_wrapper_functional"]
