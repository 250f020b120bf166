"""What a captured graph does beside giving results: taken out of it, and done around its program.

=============================================  ==========================================================
``set_.source_Tensor(argument, value)``         ``x.data = value``: the value is a further result; since torch 2.14
                                               ``shallow_copy_data_(argument, value)``
``resize_storage_bytes_(value, bytes)``         memory freed, or allocated again; of an argument or a result
``_assert_async.msg(condition, text)``          the condition is a further result, looked at on the CPU
=============================================  ==========================================================

Before::

    add = aten.add(t, 1)
    set_ = aten.set_.source_Tensor(x, t)
    return (add,)

After, with ``Set(argument=0, value=1)`` to be done::

    add = aten.add(t, 1)
    return (add, t)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class ValuePosition:
    """An argument or a result, by position."""

    kind: str
    position: int

    def of(self, arguments: Sequence[Any], results: Sequence[Any]) -> Any:
        return (arguments if self.kind == "argument" else results)[self.position]


@dataclasses.dataclass(frozen=True)
class Set:
    """An argument becomes another tensor: it shares the value's memory, shape and strides."""

    argument: ValuePosition
    value: ValuePosition

    def before(self, arguments: Sequence[Any]) -> None:
        """Nothing: the program reads the argument as it was."""

    def after(self, arguments: Sequence[Any], results: Sequence[Any]) -> None:
        with torch.no_grad():
            self.argument.of(arguments, results).set_(self.value.of(arguments, results))


@dataclasses.dataclass(frozen=True)
class Resize:
    """The memory of a tensor gets another size, in bytes."""

    tensor: ValuePosition
    size: int | ValuePosition
    is_first: bool

    def before(self, arguments: Sequence[Any]) -> None:
        """An argument that grows does so before it is written back to."""
        if self.is_first and self.tensor.kind == "argument" and isinstance(self.size, int):
            storage = self.tensor.of(arguments, ()).untyped_storage()
            if storage.size() < self.size:
                storage.resize_(self.size)

    def after(self, arguments: Sequence[Any], results: Sequence[Any]) -> None:
        size = self.size if isinstance(self.size, int) else self.size.of(arguments, results)
        storage = self.tensor.of(arguments, results).untyped_storage()
        if storage.size() != size:
            storage.resize_(size)


@dataclasses.dataclass(frozen=True)
class Assert:
    """A condition that must hold. On a device other than the CPU nobody waits for it."""

    condition: ValuePosition
    text: str

    def before(self, arguments: Sequence[Any]) -> None:
        """Nothing: the condition is computed."""

    def after(self, arguments: Sequence[Any], results: Sequence[Any]) -> None:
        condition = self.condition.of(arguments, results)
        if condition.device.type == "cpu" and not bool(condition):
            raise RuntimeError(self.text)


Effect = Set | Resize | Assert


@dataclasses.dataclass(frozen=True)
class Effects:
    """The effects of a graph, in its order.

    Attributes:
        effects: what is to be done.
        returned: how many of the program's results are the graph's own.
    """

    effects: tuple[Effect, ...]
    returned: int

    def before(self, arguments: Sequence[Any]) -> None:
        """What is done before the program runs."""
        for effect in self.effects:
            effect.before(arguments)

    def after(self, arguments: Sequence[Any], results: list[Any]) -> list[Any]:
        """What is done after it; returns the graph's own results."""
        for effect in self.effects:
            effect.after(arguments, results)
        return results[: self.returned]


SETS = tuple(filter(None, (aten.set_.source_Tensor, aten.shallow_copy_data_.default)))  # the latter since torch 2.14
ASSERTS = aten._assert_async.msg


def are_in(graph: fx.Graph) -> bool:
    """Whether a captured graph has effects."""
    return any(map(_is_effect, graph.nodes))


def take_effects(module: fx.GraphModule) -> tuple[fx.GraphModule, Effects | None]:
    """A captured graph without its effects, and these; the graph itself, and None, if it has none.

    What is not in the table above stays in the graph, which is then refused; see ``normalise.effects``.
    """
    if not are_in(module.graph):
        return module, None
    module = graphs.copy_module(module)
    output = module.graph.output_node()
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    taker = _Taker(module.graph, results)
    returned = len(results)
    effects = [effect for node in list(module.graph.nodes) if _is_effect(node) for effect in taker.take(node)]
    output.args = (tuple(results),)
    return module, Effects(tuple(_last_sizes(effects)), returned)


def _last_sizes(effects: Sequence[Effect]) -> list[Effect]:
    """The effects, of several sizes that one tensor's memory is given only the last: its contents count from there."""
    kept: list[Effect] = []
    for effect in effects:
        if isinstance(effect, Resize):
            same = (effect.tensor, effect.is_first)
            kept = [e for e in kept if not (isinstance(e, Resize) and (e.tensor, e.is_first) == same)]
        kept.append(effect)
    return kept


@contextlib.contextmanager
def coded_refusals() -> Generator[None]:
    """A scope in which AOTAutograd's refusals of effects become ours.

    Raises:
        TpuLoweringError: TL308 for an argument that is set or resized, and written to besides.
    """
    try:
        yield
    except AssertionError as error:
        if "on a graph input, but the input has other mutations" not in str(error):
            raise
        raise errors.refuse(
            "TL308",
            "an argument whose memory is exchanged (x.data = ..., x.set_(...), a storage's resize_)",
            "expected that to be all that is done to it, got another write to it in the same graph",
            "compute the new tensor before it is set (x.data = t + 1), or do one of the two in eager torch, outside of "
            "the compiled function",
        ) from error


def _is_effect(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in (*SETS, ASSERTS) or _is_resize(node))


def _is_resize(node: fx.Node) -> bool:
    return str(node.target) == "inductor.resize_storage_bytes_.default"


class _Taker:
    def __init__(self, graph: fx.Graph, results: list[Any]) -> None:
        self.placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.results = results
        self.own = tuple(results)
        self.set: set[fx.Node] = set()

    def take(self, node: fx.Node) -> list[Effect]:
        """Takes a node out of its graph; what it does, nothing if nobody can see it."""
        first: Any = node.args[0]
        if node.target is ASSERTS:
            effects: list[Effect] = [Assert(self._value(first), str(node.args[1]))]
        elif node.target in SETS:
            effects = [Set(ValuePosition("argument", self.placeholders.index(first)), self._value(node.args[1]))]
            node.replace_all_uses_with(node.args[1])  # type: ignore[arg-type]
            self.set.add(first)
        else:
            size: Any = node.args[1]
            amount = self._value(size) if isinstance(size, fx.Node) else int(size)
            effects = [Resize(place, amount, first not in self.set) for place in self._seen(first)]
        node.graph.erase_node(node)
        return effects

    def _value(self, node: Any) -> ValuePosition:
        """Where a value is found after the program ran; it becomes a further result if it is not an argument."""
        if node in self.placeholders:
            return ValuePosition("argument", self.placeholders.index(node))
        if node not in self.results:
            self.results.append(node)
        return ValuePosition("result", self.results.index(node))

    def _seen(self, node: fx.Node) -> list[ValuePosition]:
        """What of the graph's arguments and results lies in the memory of a value: one of them, if any."""
        if node in self.placeholders:
            return [ValuePosition("argument", self.placeholders.index(node))]
        memory = compat.storage_number(node.meta["val"])
        for at, result in enumerate(self.own):
            value = result.meta.get("val") if isinstance(result, fx.Node) else None
            if isinstance(value, torch.Tensor) and compat.storage_number(value) == memory:
                return [ValuePosition("result", at)]
        return []
