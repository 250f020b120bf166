"""How values lie, followed from the inputs: each rule against what XLA's partitioner may keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.cases.harness import capture, normalised
from tpu_lowering.analyse import partitions
from tpu_lowering.ir.mesh import Mesh

MESH = Mesh(("data", "model"), (4, 2), tuple(range(8)))
D, M, BOTH, W = ("data",), ("model",), ("data", "model"), ()
x, y, z = torch.ones(8, 16), torch.ones(16, 4), torch.ones(8, 16)

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], Any]] = {
    "pointwise": (lambda a, b: a * 2 + b, (x, z), ((D,), (W, M)), (D, M)),
    "pointwise, another at the same place": (lambda a, b: a + b, (x, z), ((D,), (M,)), (D,)),
    "pointwise, one axis at two places": (lambda a, b: a + b, (x, z), ((D,), (W, D)), (D,)),
    "broadcast": (lambda a, b: a + b, (x, x[0]), ((D,), (M,)), (D, M)),
    "broadcast of size 1": (lambda a, b: a + b, (x[:, :1], x), ((D,), (W, M)), (D, M)),
    "one input is unknown": (lambda a, b: a + b, (x, z), (None, (W, M)), (W, M)),
    "nothing is known": (lambda a, b: a + b, (x, z), (None, None), None),
    "transpose": (lambda a: a.t() * 2, (x,), ((D, M),), (M, D)),
    "permute": (lambda a: a.reshape(8, 4, 4).permute(2, 0, 1) * 2, (x,), ((D, M),), (W, D, M)),
    "split the inner dimension": (lambda a: a.reshape(8, 8, 2) * 2, (x,), ((W, BOTH),), (W, BOTH)),
    "split, the outer part takes the axes": (lambda a: a.reshape(8, 2, 8) * 2, (x,), ((W, M),), (W, M)),
    "split, the outer part is too small": (lambda a: a.reshape(8, 2, 8) * 2, (x,), ((W, D),), ()),
    "join": (lambda a: a.reshape(128) * 2, (x,), ((D, M),), (D,)),
    "join, the inner part is lost": (lambda a: a.reshape(128) * 2, (x,), ((W, M),), ()),
    "neither split nor join": (lambda a: a.reshape(6, 4), (torch.ones(4, 6),), ((D,),), None),
    "product": (lambda a, b: a @ b, (x, y), ((D,), (W, M)), (D, M)),
    "product, summed over a split dimension": (lambda a, b: a @ b, (x, y), ((D, M), (M,)), (D,)),
    "product of batches": (torch.bmm, (x[None], y[None]), ((W, D), (W, W, M)), (W, D, M)),
    "product and sum": (torch.addmm, (y[0], x, y), (None, (D,), (W, M)), (D, M)),
    "embedding": (torch.nn.functional.embedding, (x[:, :2].long(), y), ((D,), (W, M)), (D, W, M)),
    "softmax": (lambda a: torch.softmax(a, 1), (x,), ((D, M),), (D,)),
    "conversion": (lambda a: a.bfloat16(), (x,), ((D,),), (D,)),
    "a reduction is unknown": (lambda a: a.sum(0), (x,), ((D, M),), None),
}  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "given", "expected"), CASES.values(), ids=CASES.keys())
def test_followed(function: Any, arguments: Any, given: Any, expected: Any) -> None:
    graph = normalised(capture(function, *arguments)).graph
    known: dict[Any, Any] = {}
    inputs = iter(given)
    for node in graph.nodes:
        axes = next(inputs) if node.op == "placeholder" else partitions.axes_of(node, known, MESH)
        if axes is not None:
            known[node] = axes
    output: Any = graph.output_node().args[0]
    assert known.get(output[0]) == expected
