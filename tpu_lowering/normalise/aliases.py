"""Where the results of a captured graph lie: in memory of their own, or in that of an argument or another result.

A program computes only the former. A result that is an argument is given as it is, and one that is a view is cut out of
what it is a view of, at the place that eager has for the sizes of the call: torch rebuilds what the user gets from that
place, and what a backward needs of the arguments is saved without a copy.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir.programs import MemoryPlace, Output


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What is known of the memory of a graph's results beside what the graph says.

    Attributes:
        views: whether results may be views of something. Not those of a backward: they become gradients of several
            parameters, and an update in place of one must not show in another.
        seen: how many results, from the first on, the caller gets; the others are saved for a backward.
        arguments: for some of these, the argument in whose memory eager gives it; None for memory of its own, unless
            it is one of several views (``split``), which torch counts as such.
        overwritten: for each argument that the caller writes to after the call, the result that it writes.
        tracked: whether autograd is to know which result is a view of which: not where a graph records gradients,
            because there torch makes the views that it has to know of.
    """

    views: bool
    seen: int = 0
    arguments: Mapping[int, int | None] = dataclasses.field(default_factory=dict)
    overwritten: Mapping[int, int] = dataclasses.field(default_factory=dict)
    tracked: bool = False


APART = Sharing(views=False)
"""Of a graph whose results are views of nothing. One that is an argument is given as it is."""


@dataclasses.dataclass(frozen=True)
class Alias:
    """A result that lies in the memory of something else.

    Attributes:
        result: the result's node.
        base: a placeholder, or another result.
        views: the nodes that cut the result out of the base, first to last; none if it is the base.
        of_new_value: whether they cut it out of the value that the base, an argument, has after the call.
    """

    result: fx.Node
    base: fx.Node
    views: tuple[fx.Node, ...]
    of_new_value: bool = False

    @property
    def is_one_of_several(self) -> bool:
        """Whether a view that gives several tensors gave this one."""
        return any(node.target is operator.getitem for node in self.views)

    def layout(self) -> torch.Tensor:
        """A fake tensor laid out as eager lays out the result, in memory laid out as the base's was recorded."""
        value: Any = self.base.meta["val"]
        if not self.of_new_value:
            return self.result.meta["val"]
        with value.fake_mode:
            for node in self.views:
                target: Any = node.target
                value = target(value, *node.args[1:], **node.kwargs)
        return value

    def is_at(self, output: Output) -> bool:
        """Whether eager puts the result where an output says, by the views themselves on a tensor laid out as the base.

        What is recorded says it too; this does not ask it.
        """
        start, place = self.base.meta["val"], output.place
        count = (
            start.storage_offset()
            + 1
            + sum((n - 1) * step for n, step in zip(start.shape, start.stride(), strict=True))
        )
        value: Any = torch.empty(max(count, start.storage_offset()), dtype=start.dtype)
        value = first = value.as_strided(start.shape, start.stride(), start.storage_offset())
        for node in self.views:
            target: Any = node.target
            value = target(value, *node.args[1:], **node.kwargs)
        distance = value.data_ptr() - first.data_ptr() if value.numel() else None
        wanted = (tuple(value.shape), value.stride(), value.dtype)
        expected = (place.offset or 0) * place.dtype.itemsize if place is not None else None
        return (
            place is not None and (output.shape, output.stride, place.dtype) == wanted and distance in (None, expected)
        )

    def output(self, base: int, tracked: bool, number: Callable[[Any], int] = int) -> Output:
        """The result as its caller expects it.

        Args:
            base: position of the base among the arguments, or among the results.
            tracked: whether autograd is to know it as a view of another result.
            number: what a recorded size stands for.
        """
        layout, start = self.layout(), self.base.meta["val"]
        first, origin = (number(t.storage_offset()) * t.itemsize for t in (layout, start))
        of_argument = self.base.op == "placeholder"
        offset = (first - origin) // layout.itemsize if self.views or not of_argument else None
        place = MemoryPlace(base, of_argument, offset, layout.dtype, tracked and not of_argument)
        return Output(tuple(map(number, layout.stride())), tuple(map(number, layout.shape)), place=place)


def find(
    graph: fx.Graph, results: Sequence[Any], written: Mapping[fx.Node, fx.Node], sharing: Sharing
) -> list[Alias | None]:
    """Which results of a graph are aliases; None for those that are computed, or are no tensors.

    Args:
        graph: a captured graph, or a specialised one.
        results: what it gives.
        written: the placeholders that it writes to, and the values that it writes.
        sharing: what else is known.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    new_values = {**{placeholders[at]: results[result] for at, result in sharing.overwritten.items()}, **written}
    found: list[Alias | None] = []
    for at, result in enumerate(results):
        known = sharing.arguments.get(at)
        if not is_tensor(result):
            found.append(None)
        elif known is not None:
            found.append(_in_argument(result, placeholders[known], new_values))
        else:
            alias = _of(result)
            is_given = alias.base.op == "placeholder" and alias.base not in new_values
            allowed = alias.is_one_of_several if at in sharing.arguments else sharing.views or not alias.views
            found.append(alias if is_given and allowed else None)
    if sharing.views:
        _find_in_results(results, found)
    return found


def hidden_bases(results: Sequence[Any], found: Sequence[Alias | None], sharing: Sharing) -> list[fx.Node]:
    """Values that several results which the caller gets are views of, none of which is the value."""
    if not sharing.views:
        return []
    seen = zip(results[: sharing.seen], found, strict=False)
    bases = [base_of(result) for result, alias in seen if is_tensor(result) and alias is None]
    several = {base: None for base in bases if base.op == "call_function" and bases.count(base) > 1}
    return [base for base in several if base not in results]


def base_of(result: fx.Node) -> fx.Node:
    """What eager makes a result a view of: itself, if it is none."""
    return _chain(result)[-1]


def positions(graph: fx.Graph, results: Sequence[Any], found: Sequence[Alias | None]) -> dict[Any, int]:
    """Where bases stand: placeholders among the arguments, others among the results."""
    computed = {result: at for at, result in reversed(list(enumerate(results))) if found[at] is None}
    return computed | {node: at for at, node in enumerate(node for node in graph.nodes if node.op == "placeholder")}


def is_tensor(result: Any) -> bool:
    """Whether a result is a node of a tensor."""
    return isinstance(result, fx.Node) and isinstance(result.meta.get("val"), torch.Tensor)


SEVERAL = "several"
"""The memory of a tuple of tensors."""


def memory_of(value: Any) -> Any:
    """What tells whether two captured values share memory in eager.

    None for a lazy conjugate or negative: programs compute those, so the memory they share holds other values.
    """
    if isinstance(value, (tuple, list)):
        return SEVERAL
    if not isinstance(value, torch.Tensor) or value.is_conj() or value.is_neg():
        return None
    return compat.storage_number(value)


def _find_in_results(results: Sequence[Any], found: list[Alias | None]) -> None:
    """Enters the results that are, or are views of, another that is computed."""
    computed = [at for at, result in enumerate(results) if is_tensor(result) and found[at] is None]
    first = {results[at]: at for at in reversed(computed)}
    for at in computed:
        alias = _of(results[at])
        if alias.base.op == "call_function" and first.get(alias.base, at) != at:
            found[at] = alias


def _of(result: fx.Node) -> Alias:
    """A result as a view of what eager makes it a view of: of itself, if it is none."""
    chain = _chain(result)
    return Alias(result, chain[-1], tuple(reversed(chain[:-1])))


def _in_argument(result: fx.Node, argument: fx.Node, written: Mapping[fx.Node, fx.Node]) -> Alias | None:
    """A result that eager gives in an argument's memory, if the graph says where."""
    chain, value = _chain(result), written.get(argument, argument)
    if value not in chain or value.meta["val"].shape != argument.meta["val"].shape:
        return None
    views = tuple(reversed(chain[: chain.index(value)]))
    return Alias(result, argument, views, of_new_value=value is not argument)


def _chain(node: fx.Node) -> list[fx.Node]:
    """A node, what it is a view of, what that is a view of, and so on.

    The storages of recorded values do not tell all of it: where AOTAutograd puts an operator in place of another (on
    tensors, for one on numbers), views are recorded in the storage of the one that is gone.
    """
    chain, end = [node], 1
    while (source := _viewed(chain[-1])) is not None and None not in (_memory(chain[-1]), _memory(source)):
        chain.append(source)
        if _memory(source) != SEVERAL:
            end = len(chain)
    return chain[:end]


def _memory(node: fx.Node) -> Any:
    return node.meta["memory"] if "memory" in node.meta else memory_of(node.meta.get("val"))


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node that a node is a view of, if it is one: its first argument."""
    source = node.args[0] if node.args and node.op == "call_function" else None
    if not isinstance(source, fx.Node):
        return None
    if node.target is operator.getitem:
        return source if _viewed(source) is not None else None
    schema = compat.schema(node.target)
    views = schema is not None and any(one.alias_info and not one.alias_info.is_write for one in schema.returns)
    return source if views or SEVERAL != _memory(source) == _memory(node) else None
