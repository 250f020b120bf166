"""What generated source can hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from tpu_lowering import errors
from tpu_lowering.codegen import source
from tpu_lowering.ir import graphs
from tpu_lowering.ir.programs import Output, Program, Signature

aten = torch.ops.aten


def program_of(argument: Any) -> Program:
    """A program of one addition, of an input and an argument."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    with graphs.fake_mode(graph):
        x.meta["val"] = torch.empty(4)
    total = graphs.call(graph, aten.add.Tensor, x, 1)
    graph.output((total,))
    module, results = fx.GraphModule({}, graph), (Output.of(total.meta["val"]),)
    (added,) = (node for node in module.graph.nodes if node.op == "call_function")
    added.update_arg(1, argument)
    return Program((0,), Signature(results, 1, ()), name="sums", module=module)


def test_numbers_are_written() -> None:
    assert "aten.add(x, 2.5, out=f32[4])" in source.generate(program_of(2.5)).text
    assert 'aten.add(x, float("inf"), out=f32[4])' in source.generate(program_of(float("inf"))).text


@pytest.mark.parametrize("argument", [torch.Generator(), [1, object()]], ids=["generator", "list of an object"])
def test_an_argument_that_is_no_python_literal(argument: Any) -> None:
    with pytest.raises(errors.TpuLoweringError) as caught:
        source.generate(program_of(argument))
    kind = "Generator" if isinstance(argument, torch.Generator) else "object"
    assert caught.value.refusal == errors.Refusal(
        "TL310",
        "aten.add.Tensor",
        f"expected tensors, numbers, texts, types and lists of them as arguments, got {kind}",
        'keep the call out of the program, with options={"fallback": "eager"}',
    )
