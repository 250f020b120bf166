"""What a graph may hold after each stage: a table of operators, executable.

A stage's ``Legal`` lists every class of operators that may be in a graph from there on, in words and as a predicate of
a call's target, each with what its arguments and types must be. The first class that holds a target decides. A call
that no class holds is illegal, so an operator that a stage promises to remove cannot stay unnoticed.

A check that fails is a bug of this package; the error names the stage that broke it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box, write_box
from tpu_lowering.ir.collectives import COLLECTIVES as ALONG_AXES
from tpu_lowering.ir.contractions import contract
from tpu_lowering.ir.control_flow import CONTROL_FLOW
from tpu_lowering.ir.convolutions import convolve_channels
from tpu_lowering.ir.dropped_attention import dropped_attention, dropped_attention_gradients
from tpu_lowering.ir.intervals import interval_sums
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.materialized import materialize, together
from tpu_lowering.ir.random import derive_key, draw, pack_key, unpack_key
from tpu_lowering.ir.regions import regions_of
from tpu_lowering.ir.shardings import constrain
from tpu_lowering.ir.types import element_type

Check = Callable[[fx.Node], "str | None"]
"""What is wrong with a call, or None."""


@dataclasses.dataclass(frozen=True)
class Operators:
    """A class of operators.

    Attributes:
        name: in words, plural.
        hold: whether a target is one of them.
        check: what is wrong with the arguments or the type of a call.
    """

    name: str
    hold: Callable[[Any], bool]
    check: Check = lambda node: None


@dataclasses.dataclass(frozen=True)
class Legal:
    """What may be in a graph.

    Attributes:
        operators: classes of what may be called; the first that holds a target decides.
        removed: classes of what may not, whatever ``operators`` holds.
    """

    operators: tuple[Operators, ...]
    removed: tuple[Operators, ...] = ()

    def without(self, *removed: Operators) -> Legal:
        """The same without classes of operators."""
        return Legal(tuple(one for one in self.operators if one not in removed), (*self.removed, *removed))

    def instead(self, old: Operators, new: Operators) -> Legal:
        """The same with one class in another's place."""
        return dataclasses.replace(self, operators=tuple(new if one is old else one for one in self.operators))

    def with_(self, *brought: Operators) -> Legal:
        """The same with further classes, which decide before those that were there."""
        return Legal((*brought, *self.operators), self.removed)

    def names(self) -> tuple[str, ...]:
        """The classes in words."""
        return tuple(one.name for one in self.operators)

    def broken_by(self, graph: fx.Graph, checked: Checked) -> str | None:
        """The first thing in a graph that is not legal, in words; None if there is none. Adds to what was checked."""
        before, known = checked.graphs.get(graph, ({}, {}))
        records = {node: (node.target, node.args, node.kwargs, node.meta.get("val")) for node in graph.nodes}
        changed: set[fx.Node] = set()
        for node, (target, args, kwargs, value) in records.items():
            old = before.get(node)
            if old is None or old[3] is not value or old[1] is not args or old[2] is not kwargs or old[0] is not target:
                changed.add(node)
                changed.update(node.users)
        if changed or list(records) != list(before):
            graph.lint()
        classes = {target: self._class_of(target) for target in known}
        others = {target for target, found in classes.items() if found is not known[target]}
        if others:
            changed.update(node for node in records if node.op == "call_function" and node.target in others)
        for node in records if changed else ():
            broken = self._broken(node, classes) if node in changed else None
            if broken is not None:
                return f"{node.name} is {broken}" if broken.startswith("a ") else f"{node.name} {broken}"
        checked.graphs[graph] = records, classes
        return None

    def _broken(self, node: fx.Node, classes: dict[Any, Operators | str]) -> str | None:
        """What is wrong with a node; adds to the classes of targets."""
        if node.op == "call_function":
            found = classes.get(node.target)
            if found is None:
                found = classes[node.target] = self._class_of(node.target)
            broken = f"a call of {node.target}, {found}" if isinstance(found, str) else found.check(node)
        else:
            broken = f"a node of kind {node.op}" if node.op in ("call_method", "call_module") else None
        return broken or _broken_type(node)

    def _class_of(self, target: Any) -> Operators | str:
        """The class of a target, or why it has none."""
        gone = next((one.name for one in self.removed if one.hold(target)), None)
        if gone is not None:
            return f"one of the {gone} that a stage before removed"
        found = next((one for one in self.operators if one.hold(target)), None)
        return found or f"expected one of: {', '.join(self.names())}"


def targets(name: str, known: Collection[Any], check: Check = lambda node: None) -> Operators:
    """A class of operators that is a list."""
    listed = frozenset(known)
    return Operators(name, lambda target: target in listed, check)


@dataclasses.dataclass(frozen=True)
class Checked:
    """What was found to be legal. After a stage only those nodes are looked at again that it made or changed, their
    users, and those whose targets are of another class from there on.

    Attributes:
        graphs: of each graph what its nodes' checks read, in order (target, arguments, keywords, value), and the
            classes of targets.
    """

    graphs: dict[fx.Graph, tuple[dict[fx.Node, tuple[Any, ...]], dict[Any, Operators | str]]] = dataclasses.field(
        default_factory=dict
    )


def check(graph: fx.Graph, legal: Legal, stage: str, checked: Checked | None = None) -> None:
    """Checks a graph after a stage: every node stands after what it uses, and all that is in it is legal.

    Args:
        graph: the graph.
        legal: what may be in it.
        stage: which.
        checked: of the stages before, added to; None if there were none.

    Raises:
        TpuLoweringError: TL402, naming the stage and the node.
    """
    try:
        broken = legal.broken_by(graph, Checked() if checked is None else checked)
    except RuntimeError as error:
        broken = str(error)
    if broken is not None:
        raise errors.refuse(
            "TL402",
            f"the graph after {stage}",
            f"expected what is legal after {stage}, got: {broken}",
            "this is a bug of tpu_lowering; please report it with the output of options={'dump': 'folder'}",
        )


def _broken_type(node: fx.Node) -> str | None:
    """Every tensor has a concrete shape and a dtype that JAX has."""
    value = node.meta.get("val") if node.op != "output" else None
    for leaf in (value,) if isinstance(value, torch.Tensor) else compat.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            if not all(type(size) is int for size in leaf.shape):
                return f"has the symbolic shape {tuple(leaf.shape)}"
            if element_type(leaf.dtype) is None:
                return f"has dtype {leaf.dtype}"
    return None


def _takes_one_of_a_tuple(node: fx.Node) -> str | None:
    source, *index = node.args
    many = isinstance(source, fx.Node) and isinstance(source.meta.get("val"), (tuple, list))
    if not many or len(index) != 1 or type(index[0]) is not int:
        return f"takes {index} of {source}, where it expects a number of a call with several results"
    return None


def _writes_nothing(node: fx.Node) -> str | None:
    schema = compat.schema(node.target)
    if schema is not None and schema.is_mutable:
        return f"calls {node.target}, which writes to its arguments"
    return None


def _matches_its_kernel(node: fx.Node) -> str | None:
    """Operands are of the kernel's types; only written ones may be fresh."""
    kernel, operands = graphs.kernel_of(node), graphs.operands_of(node)
    if len(operands) != len(kernel.operands):
        return f"passes {len(operands)} operands to {kernel.name}, which takes {len(kernel.operands)}"
    for operand, slot in zip(operands, kernel.operands, strict=True):
        if operand is None and slot.result is None:
            return f"makes the read-only operand '{slot.name}' of {kernel.name} fresh"
        if operand is not None and graphs.type_of(operand) != slot.type:
            return f"passes {graphs.type_of(operand)} as '{slot.name}', which is {slot.type}"
    return None


def _box_is_of_its_value(node: fx.Node) -> str | None:
    """A box has as many dimensions as its value, and what is read or written its shape and dtype."""
    *values, box = node.args
    tensors = [value.meta["val"] for value in values if isinstance(value, fx.Node)]
    if not isinstance(box, Box) or len(tensors) != (1 if node.target is read_box else 2):
        return f"has the arguments {node.args}, where it expects tensors and a box"
    whole, part = tensors[0], node.meta["val"] if node.target is read_box else tensors[1]
    if len(box.shape) != whole.dim() or tuple(part.shape) != box.shape or part.dtype != whole.dtype:
        return f"takes {box} of {whole.dtype} {tuple(whole.shape)} to be {part.dtype} {tuple(part.shape)}"
    return None


def _contracts_its_axes(node: fx.Node) -> str | None:
    """A contraction's equation has an axis for each dimension of what it takes and gives."""
    equation, *operands = node.args[:3]
    taken, _, given = str(equation).partition("->")
    shapes = [tuple(one.meta["val"].shape) for one in (*operands, node) if isinstance(one, fx.Node)]
    axes = [*taken.split(","), given]
    if list(map(len, axes)) != list(map(len, shapes)):
        return f"has the equation {equation!r} for values of shapes {shapes}"
    return None


def _drops_weights(node: fx.Node) -> str | None:
    """One number of 8 bits says of each weight whether it is kept."""
    query, key, _, kept = node.args[-10:-6]
    (batch, queries, _), (_, keys, _), of_kept = (tuple(one.meta["val"].shape) for one in (query, key, kept))  # type: ignore[union-attr]
    if (*of_kept[:1], *of_kept[2:]) != (batch, queries, keys):
        return f"keeps weights by {of_kept}, where it has those of {batch} times {queries} queries and {keys} keys"
    return None


def _has_regions(node: fx.Node) -> str | None:
    return None if regions_of(node) else f"has no region among its arguments {node.args}"


def _has_a_key(node: fx.Node) -> str | None:
    """A draw names a random operator, then takes a key."""
    if not isinstance(node.args[0], compat.OpOverload) or len(node.args) < 2:
        return f"draws by {node.args}, where it expects an operator and a key"
    return None


def _functionalized() -> tuple[Any, Any]:
    return compat.auto_functionalized, compat.auto_functionalized_v2


def _repeats_a_draw(target: Any) -> bool:
    return isinstance(target, compat.HigherOrderOperator) and target in compat.random_state_operators()


NAMED_RESULTS = Operators("results of calls, by number or name", lambda target: target is operator.getitem)
RESULTS = Operators("results of calls", lambda target: target is operator.getitem, _takes_one_of_a_tuple)
ATEN = Operators("functional operators of torch", lambda target: isinstance(target, compat.OpOverload), _writes_nothing)
ANY_ATEN = Operators("operators of torch", lambda target: isinstance(target, compat.OpOverload))
HIGHER_ORDER = Operators("higher-order operators", lambda target: isinstance(target, compat.HigherOrderOperator))
FUNCTIONALIZED = Operators("functionalized calls", lambda target: target in _functionalized())
KERNEL_CALLS = Operators("kernel calls", lambda target: target is kernel_call, _matches_its_kernel)
REPEATED_DRAWS = Operators("random operators that are computed twice", _repeats_a_draw)
CONTROL = targets("control flow", CONTROL_FLOW, _has_regions)
DRAWS = Operators("draws", lambda target: target is draw, _has_a_key)
KEYS = targets("random keys", (derive_key, pack_key, unpack_key))
BOXES = targets("boxes", (read_box, write_box), _box_is_of_its_value)
CONTRACTIONS = targets("contractions", (contract,), _contracts_its_axes)
MATERIALIZED = targets("values written once", (materialize,))
TOGETHER = targets("values that wait for one another", (together,))
DROPPED = targets("attention with dropped weights", (dropped_attention, dropped_attention_gradients), _drops_weights)
INTERVALS = targets("sums of intervals", (interval_sums,))
CHANNELS = targets("convolutions of channels", (convolve_channels,))
CONSTRAINTS = targets("constraints of shardings", (constrain,))

COLLECTIVES = targets("collectives", ALONG_AXES)

SPECIALISED = Legal((NAMED_RESULTS, COLLECTIVES, ANY_ATEN, HIGHER_ORDER, CONSTRAINTS, DROPPED, TOGETHER))
"""After symbols became numbers."""
