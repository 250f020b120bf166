"""Python code that a graph calls by a name, each with a number in it: ``python python_in_graphs.py FOLDER NUMBER``.

Prints what came out: each is the number, whoever compiled it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

import tpu_lowering

FACTOR = 1
Run = Callable[[Callable[..., Any]], Callable[..., Any]]


@torch.compiler.allow_in_graph
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x * FACTOR


def allowed_in_graph(run: Run) -> float:
    return float(run(lambda x: opaque(x))(torch.ones(3))[0])


def allowed_inside_of_checkpoint(run: Run) -> float:
    x = torch.ones(3, requires_grad=True)
    run(lambda x: checkpoint(lambda x: opaque(x), x, use_reentrant=False))(x).sum().backward()
    assert x.grad is not None
    return float(x.grad[0])


@torch.library.custom_op("in_graphs::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@triple.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


tpu_lowering.register_kernel(torch.ops.in_graphs.triple.default)(lambda x: x * 3)
triple.register_autograd(lambda context, gradient: gradient * FACTOR)


def gradient_of_a_custom_operator(run: Run) -> float:
    x = torch.ones(3, requires_grad=True)
    # By its operator: torch's precompilation cannot pickle the object that ``custom_op`` makes.
    run(lambda x: torch.ops.in_graphs.triple(x))(x).sum().backward()
    assert x.grad is not None
    return float(x.grad[0])


library = torch.library.Library("in_graphs", "FRAGMENT")
library.define("composite(Tensor x) -> Tensor")
library.impl("composite", lambda x: x * FACTOR, "CompositeImplicitAutograd")


def operator_of_other_operators(run: Run) -> float:
    return float(run(lambda x: torch.ops.in_graphs.composite(x))(torch.ones(3))[0])


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * FACTOR


def autograd_function(run: Run) -> float:
    x = torch.ones(3, requires_grad=True)
    run(lambda x: Scaled.apply(x))(x).sum().backward()
    assert x.grad is not None
    return float(x.grad[0])


@tpu_lowering.kernel_op("in_graphs::scale")
def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


def argument_of_a_kernel(run: Run) -> float:
    return float(run(lambda x: scale(x, float(FACTOR)))(torch.ones(3))[0])


CASES = (
    allowed_in_graph,
    allowed_inside_of_checkpoint,
    gradient_of_a_custom_operator,
    operator_of_other_operators,
    autograd_function,
    argument_of_a_kernel,
)

if __name__ == "__main__":
    folder, FACTOR = sys.argv[1], int(sys.argv[2])

    def run(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(function, backend="helion_tpu", fullgraph=True, options={"cache": folder})

    print(json.dumps({case.__name__: case(run) for case in CASES}))
