"""A program: a normalised graph and how its results go back to the caller."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from tpu_lowering.ir.types import TensorType


@dataclasses.dataclass(frozen=True)
class Output:
    """One result that the caller expects.

    Attributes:
        stride: strides that eager gives the tensor, in elements; None for a result that is no tensor.
        constant: the result itself, if it is no tensor (a size, or None for a missing gradient).
    """

    stride: tuple[int, ...] | None
    constant: Any = None


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a captured graph takes and gives, beside its computation.

    Attributes:
        outputs: the results, in the caller's order.
        mutated: for each value that follows the results in the graph's output, the position of the
            argument it is written back to.
    """

    outputs: tuple[Output, ...]
    mutated: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A lowered graph, ready for code.

    Attributes:
        name: unique in its compilation: ``forward_0``, ``backward_0``, ...
        module: the graph; its output is a flat tuple of nodes: tensor results, then mutated values.
        inputs: positions of the caller's arguments that the program takes, in order.
        signature: see ``Signature``.
    """

    name: str
    module: fx.GraphModule
    inputs: tuple[int, ...]
    signature: Signature

    def input_nodes(self) -> list[fx.Node]:
        """Placeholders of the arguments that the program takes."""
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return [placeholders[position] for position in self.inputs]

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors that are part of the graph itself, by attribute name."""
        names = [str(node.target) for node in self.module.graph.nodes if node.op == "get_attr"]
        return {name: getattr(self.module, name) for name in names}

    def output_nodes(self) -> list[fx.Node]:
        return list(self.module.graph.output_node().args[0])  # type: ignore[arg-type]

    def types(self) -> list[TensorType]:
        """Types of the program's results."""
        return [TensorType.of(node.meta["val"]) for node in self.output_nodes()]
