"""Pointwise work around a kernel: what can be computed on a block of its operand, or of its result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.codegen import source
from tpu_lowering.fuse.rows.block_graph import constant_element, on_block
from tpu_lowering.fuse.space.kinds import HELD, is_constant, is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs
from tpu_lowering.ir.programs import Program, Signature

aten = compat.aten
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Pointwise nodes, each of the same shape, that end in one value.

    Attributes:
        members: the nodes, in order.
        inputs: the tensors they take, each once; of the value's shape, or such as broadcast to it.
    """

    members: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]

    @property
    def result(self) -> fx.Node:
        return self.members[-1]

    @property
    def nbytes(self) -> int:
        return sum(graphs.type_of(node).nbytes for node in self.inputs)


def producers(node: fx.Node) -> Chain | None:
    """The pointwise work that ends in a kernel's operand and serves nothing else; None if there is none."""
    members: list[fx.Node] = []
    pending = [node]
    while pending:
        current = pending.pop()
        alone = all(user in members for user in current.users) if members else len(current.users) == 1
        if alone and _is_pointwise(current, shape_of(node)):
            members.append(current)
            pending += [used for used in tensor_operands(current) if used not in members]
    return _chain(members)


def consumers(node: fx.Node) -> Chain | None:
    """The pointwise work that takes a kernel's result, so long as nothing else takes what is between; None if none."""
    members: list[fx.Node] = []
    current = node
    while len(current.users) == 1:
        (user,) = current.users
        others = [used for used in tensor_operands(user) if used is not current]
        if not _is_pointwise(user, shape_of(node)) or any(_waits_for(used, node) for used in others):
            break
        members.append(user)
        current = user
    return _chain(members)


def _chain(members: Sequence[fx.Node]) -> Chain | None:
    if not members:
        return None
    position = {node: at for at, node in enumerate(members[0].graph.nodes)}
    ordered = sorted(members, key=position.__getitem__)
    taken = [used for member in ordered for used in tensor_operands(member) if used not in members]
    inputs = tuple(dict.fromkeys(used for used in taken if not is_constant(used)))
    if any(value.meta["val"].dtype not in HELD - {torch.bool} for value in (*inputs, ordered[-1])):
        return None
    return Chain(tuple(ordered), inputs)


def _is_pointwise(node: fx.Node, shape: Shape) -> bool:
    return is_pointwise(node) and shape_of(node) == shape and len(shape) >= 2


def _waits_for(node: fx.Node, other: fx.Node) -> bool:
    """Whether a node is computed from what the kernel that gives another one gives."""
    kernel = other.all_input_nodes[0]
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if current is kernel:
            return True
        new = [used for used in current.all_input_nodes if used not in seen]
        seen.update(new)
        pending += new
    return False


def block_of(shape: Sequence[int], block: Sequence[int]) -> Shape:
    """The part of a broadcast value that belongs to a block: 1 along the dimensions that it does not run along."""
    whole = (1,) * (len(block) - len(shape)) + tuple(shape)
    return tuple(1 if size == 1 else part for size, part in zip(whole, block, strict=True))


def write(chain: Chain, block: Shape, name: str) -> str:
    """The source of the function that computes a chain's result on one block, of blocks of ``chain.inputs``."""
    graph, mode = fx.Graph(), compat.FakeTensorMode()
    values: dict[fx.Node, fx.Node] = {}
    for node in chain.inputs:
        values[node] = graph.placeholder(node.name)
        with mode:
            values[node].meta["val"] = torch.empty(block_of(shape_of(node), block), dtype=node.meta["val"].dtype)

    def value(used: fx.Node) -> fx.Node:
        if used not in values:
            element = constant_element(used)
            shape = [1] * len(block)
            values[used] = graphs.call(graph, aten.full.default, shape, element, dtype=used.meta["val"].dtype)
        return values[used]

    for member in chain.members:
        values[member] = on_block(functools.partial(graphs.call, graph), member, value)
    graph.output((values[chain.result],))
    module = graphs.module_of({}, graph)
    program = Program(tuple(range(len(chain.inputs))), Signature((), 0, ()), name=name, module=module)
    return source.generate(program).text
