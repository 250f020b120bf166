"""A program: a normalised graph and how its results go back to the caller."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering.ir import regions
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.random import DrawnInput
from tpu_lowering.ir.types import TensorType


def dense_order(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...] | None:
    """The storage order of a dense tensor's dimensions, outermost first; None if it is not dense."""
    order = tuple(sorted(range(len(shape)), key=lambda dim: (-stride[dim], dim)))
    expected = 1
    for dim in reversed(order):
        if shape[dim] != 1 and stride[dim] != expected:
            return None
        expected *= shape[dim]
    return order


@dataclasses.dataclass(frozen=True)
class Output:
    """One result that the caller expects.

    Attributes:
        stride: strides that eager gives the tensor, in elements; None for a result that is no tensor.
        shape: the tensor's shape; the program's own result is permuted, see ``lower.program``.
        constant: the result itself, if it is no tensor (a size, or None for a missing gradient).
        place: where the result lies in memory that an argument or another result holds; the program does not compute
            such a result.
        is_saved: whether only a backward gets the tensor, and nobody can ask it to be resized.
    """

    stride: tuple[int, ...] | None
    shape: tuple[int, ...] = ()
    constant: Any = None
    place: MemoryPlace | None = None
    is_saved: bool = False

    @classmethod
    def of(cls, value: torch.Tensor, place: MemoryPlace | None = None) -> Output:
        """A result with a tensor's shape and strides."""
        return cls(tuple(value.stride()), tuple(value.shape), place=place)

    @classmethod
    def of_argument(cls, position: int) -> Output:
        """A result that is an argument, whatever that is."""
        return cls((), place=MemoryPlace(position, True, None, torch.uint8))

    @property
    def is_computed(self) -> bool:
        """Whether the result is one of the program's."""
        return self.stride is not None and self.place is None


@dataclasses.dataclass(frozen=True)
class MemoryPlace:
    """A place in the memory of a base: an argument, or a result that has memory of its own.

    Attributes:
        base: position of the base among the arguments, or among a signature's outputs.
        of_argument: which of the two.
        offset: from the base's first element, in elements of ``dtype``; None if the result is the base itself.
        dtype: of the result.
        tracked: whether autograd knows that the result is a view: one that is written in place changes the base.
    """

    base: int
    of_argument: bool
    offset: int | None
    dtype: torch.dtype
    tracked: bool = False


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a captured graph takes and gives, beside its computation.

    Attributes:
        outputs: the results, in the caller's order, then bases of results that are no results themselves.
        returned: how many of the outputs are results.
        mutated: for each value that follows the results in the graph's output, the position of the
            argument it is written back to.
    """

    outputs: tuple[Output, ...]
    returned: int
    mutated: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Interface:
    """How a program is called.

    Attributes:
        inputs: positions of the caller's arguments that the program takes, in order.
        signature: see ``Signature``.
        drawn: inputs that the program's caller draws, each anew for every call; see ``all_arguments``.
    """

    inputs: tuple[int, ...]
    signature: Signature
    drawn: tuple[DrawnInput, ...] = ()

    def all_arguments(self, arguments: Sequence[Any]) -> list[Any]:
        """The captured graph's arguments, then what is drawn for this call; ``inputs`` are positions in it."""
        return [*arguments, *(source.take(arguments) for source in self.drawn)]

    def donated_inputs(self) -> tuple[int, ...]:
        """For each mutated argument that the program takes, its position among the inputs: their buffers may go."""
        return tuple(self.inputs.index(position) for position in self.signature.mutated if position in self.inputs)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Program(Interface):
    """A lowered graph, ready for code.

    Attributes:
        name: unique in its compilation: ``forward_0``, ``backward_0``, ...
        module: the graph; its output is a flat tuple of nodes: tensor results, then mutated values.
        numbers: expressions in true sizes, of a program for rounded ones: further arguments, after the caller's.
        mesh: whose devices all run it, each with inputs and results of its own; None for one device.
    """

    name: str
    module: fx.GraphModule
    numbers: tuple[Any, ...] = ()
    mesh: Mesh | None = None

    def input_nodes(self) -> list[fx.Node]:
        """Placeholders of the arguments that the program takes."""
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return [placeholders[position] for position in self.inputs]

    def drawn_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are drawn, in order: the last of the program's inputs."""
        first = sum(node.op == "placeholder" for node in self.module.graph.nodes) - len(self.drawn)
        return tuple(self.drawn[position - first].name for position in self.inputs if position >= first)

    def constants(self) -> dict[tuple[fx.GraphModule, str], torch.Tensor]:
        """Tensors that are part of the graph and its regions, by module and attribute name."""
        return {
            (module, str(node.target)): getattr(module, str(node.target))
            for module in regions.modules(self.module)
            for node in module.graph.nodes
            if node.op == "get_attr"
        }

    def output_nodes(self) -> list[fx.Node]:
        return list(self.module.graph.output_node().args[0])  # type: ignore[arg-type]

    def types(self) -> list[TensorType]:
        """Types of the program's results."""
        return [TensorType.of(node.meta["val"]) for node in self.output_nodes()]
