"""Random operators to draws from a key, or to inputs that eager torch draws.

=================================================  ==========================================================
``aten.rand(size)``, ``randn_like(x)``, ...         the fill of eager that makes it: ``uniform``, ``normal``, ...
``aten.uniform(x, a, b)``, ...                      ``draw(aten.uniform, derive_key(key, i), like(x), a, b)``
``run_and_save_rng_state(op, ...)``                 ``(pack_key(derive_key(key, i)), draw(op, ...))``
``run_with_rng_state(state, op, ...)``              ``draw(op, unpack_key(state), ...)``
=================================================  ==========================================================

The key is a new placeholder, the last one. With ``random="torch"`` every draw is a new placeholder itself, and a
saved state is one of torch's generator. AOTAutograd writes the last two rows where a backward computes values of
the forward again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments, fakes, graphs, random
from tpu_lowering.ir.operators import is_allocation
from tpu_lowering.ir.random import Like
from tpu_lowering.ir.regions import Region
from tpu_lowering.options import Random

aten = compat.aten
INTEGERS = getattr(aten.random, "from")

ATTENTION: tuple[Any, ...] = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
)

# Operators that draw as often as their tensors' contents ask for.
ON_DATA: frozenset[Any] = frozenset((
    aten._sample_dirichlet.default, aten._standard_gamma.default, aten.binomial.default, aten.poisson.default,
    aten.rrelu_with_noise_functional.default,
))  # fmt: skip

# Operators that take a tensor for its shape, and the position of that argument.
SHAPED: dict[Any, int] = {**dict.fromkeys(random.FILLS, 0), aten.rrelu_with_noise_functional.default: 1}

# Operators that make a tensor: the fill that eager makes it with, and that fill's numbers.
MAKERS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.normal.float_float: lambda mean, std, size: (aten.normal_functional.default, mean, std),
    aten.rand.default: lambda size: (aten.uniform.default, 0.0, 1.0),
    aten.rand_like.default: lambda self: (aten.uniform.default, 0.0, 1.0),
    aten.randint.default: lambda high, size: (INTEGERS, 0, high),
    aten.randint.low: lambda low, high, size: (INTEGERS, low, high),
    aten.randint_like.default: lambda self, high: (INTEGERS, 0, high),
    aten.randint_like.low_dtype: lambda self, low, high: (INTEGERS, low, high),
    aten.randn.default: lambda size: (aten.normal_functional.default, 0.0, 1.0),
    aten.randn_like.default: lambda self: (aten.normal_functional.default, 0.0, 1.0),
}


OPERATORS: frozenset[Any] = frozenset((*random.FILLS, *MAKERS, *ON_DATA, aten.randperm.default))


def make_draws_explicit(module: fx.GraphModule, option: Random) -> None:
    """Rewrites every random operator of a graph, in place.

    Args:
        module: a specialised graph.
        option: where values come from; see ``Options.random``.

    Raises:
        TpuLoweringError: TL320 for an operator that ``random="torch"`` cannot follow, TL321 for a generator.
    """
    saves, repeats = compat.random_state_operators()
    graph = module.graph
    source: _Source = _FromKey(graph) if option == "jax" else _FromTorch(graph)
    found = [node for node in graph.nodes if node.target in (saves, repeats) or node.target in OPERATORS]
    for node in graph.nodes:
        _refuse_generator(node)
    for node in found:
        operands = node.all_input_nodes
        if node.target is saves:
            _name_source(node)
        with graphs.inserting_for(node):
            if node.target is saves and node.args[0] in ATTENTION:
                state = graphs.call(graph, aten.zeros.default, [random.state_size()], dtype=torch.uint8)
                _replace_pair(node, (state, graphs.call(graph, *node.args, **node.kwargs)))  # type: ignore[arg-type]
            elif node.target is saves:
                _replace_pair(node, source.save(_drawing(node, node.args)))
            elif node.target is repeats and node.args[1] in ATTENTION:
                graphs.replace(node, graphs.call(graph, *node.args[1:], **node.kwargs))  # type: ignore[arg-type]
            elif node.target is repeats:
                graphs.replace(node, source.repeat(_drawing(node, node.args[1:]), node.args[0]))
            else:
                graphs.replace(node, source.draw(_drawing(node, (node.target, *node.args))))
        _erase_unused(operands)


def refuse_inside(region: Region) -> None:
    """Checks that a region draws nothing: it has no key, and an index for each turn of a loop would be needed.

    Raises:
        TpuLoweringError: TL322.
    """
    saves, repeats = compat.random_state_operators()
    for node in region.module.graph.nodes:
        if node.target in (saves, repeats) or node.target in OPERATORS:
            raise errors.refuse(
                "TL322",
                str(node.target),
                f"expected {region.name} of control flow to draw no random values, got {node.target}",
                "draw before torch.cond, while_loop, scan or map, and pass the values in",
                graphs.source_line(node),
            )


def give_states_a_size(graph: fx.Graph) -> None:
    """Records the size of saved states, in place: AOTAutograd records a symbol for it that no input defines."""
    saves, repeats = compat.random_state_operators()
    for node in list(graph.nodes):
        states = [node.args[0]] if node.target is repeats else []
        states += [user for user in node.users if user.args[1] == 0] if node.target is saves else []
        for state in states:
            with state.meta["val"].fake_mode:
                state.meta["val"] = torch.empty(random.state_size(), dtype=torch.uint8)


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """A random operator's call: ``Like`` stands for tensors that are given for their shape.

    Attributes:
        node: the call as it was, for its source line.
        value: fake result.
        overload, args, dtype: what is drawn.
    """

    node: fx.Node
    value: Any
    overload: Any
    args: tuple[Any, ...]
    dtype: torch.dtype | None = None

    def call(self, graph: fx.Graph, key: fx.Node) -> fx.Node:
        """The draw from a key, as a new node."""
        kwargs = {} if self.dtype is None else {"dtype": self.dtype}
        new = graphs.call(graph, random.draw, self.overload, key, *self.args, **kwargs)
        new.meta["val"] = self.value
        return new

    def from_torch(self, state: int | None = None) -> random.Drawn:
        """The draw by eager torch.

        Raises:
            TpuLoweringError: TL320.
        """
        if self.overload in ON_DATA:
            raise errors.refuse(
                "TL320",
                str(self.overload),
                "expected a draw that depends on shapes and numbers alone, got one that depends on a tensor's values",
                'compile with options={"random": "jax"}, or run it in eager, before the compiled function',
                graphs.source_line(self.node),
            )
        return random.Drawn(self.overload, self.args, self.dtype, state)


def _drawing(node: fx.Node, given: Sequence[Any]) -> _Drawing:
    """What a call ``(overload, *arguments)`` draws."""
    overload, args = given[0], list(given[1:])
    value = fakes.infer(graphs.values_of(node.graph), overload, args, node.kwargs)
    if overload in MAKERS:
        overload, *numbers = MAKERS[overload](*args)
        return _Drawing(node, value, overload, (Like.of(value), *numbers))
    if overload is aten.randperm.default:
        return _Drawing(node, value, overload, tuple(args), value.dtype)
    if overload in SHAPED:
        args[SHAPED[overload]] = Like.of(args[SHAPED[overload]].meta["val"])
    return _Drawing(node, value, overload, tuple(args))


class _Source(Protocol):
    """Where the values of a graph come from. Each method adds nodes; ``save`` gives a state and the values."""

    def draw(self, drawing: _Drawing) -> fx.Node: ...

    def save(self, drawing: _Drawing) -> tuple[fx.Node, fx.Node]: ...

    def repeat(self, drawing: _Drawing, state: fx.Node) -> fx.Node: ...


class _FromKey:
    """Drawn in the program, from its key; a saved state is a node's own key."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.key: fx.Node | None = None
        self.count = 0

    def _next_key(self) -> fx.Node:
        if self.key is None:
            self.key = _new_input(self.graph, random.Key(), torch.empty(2, dtype=torch.uint32, device="meta"))
        self.count += 1
        return graphs.call(self.graph, random.derive_key, self.key, self.count - 1)

    def draw(self, drawing: _Drawing) -> fx.Node:
        return drawing.call(self.graph, self._next_key())

    def save(self, drawing: _Drawing) -> tuple[fx.Node, fx.Node]:
        key = self._next_key()
        state = graphs.call(self.graph, random.pack_key, key, random.state_size())
        return state, drawing.call(self.graph, key)

    def repeat(self, drawing: _Drawing, state: fx.Node) -> fx.Node:
        return drawing.call(self.graph, graphs.call(self.graph, random.unpack_key, state))


class _FromTorch:
    """Drawn by eager torch before the program runs, in the order of the graph; a state is torch's own."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.given = [node for node in graph.nodes if node.op == "placeholder"]

    def draw(self, drawing: _Drawing) -> fx.Node:
        return _new_input(self.graph, drawing.from_torch(), drawing.value)

    def save(self, drawing: _Drawing) -> tuple[fx.Node, fx.Node]:
        like = torch.empty(random.state_size(), dtype=torch.uint8, device="meta")
        return _new_input(self.graph, random.GeneratorState(), like), self.draw(drawing)

    def repeat(self, drawing: _Drawing, state: fx.Node) -> fx.Node:
        return _new_input(self.graph, drawing.from_torch(self.given.index(state)), drawing.value)


def _new_input(graph: fx.Graph, source: random.DrawnInput, like: torch.Tensor) -> fx.Node:
    """A placeholder after all others, for what ``source`` draws: of the shape, strides and dtype of ``like``."""
    mode = graphs.fake_mode(graph)
    following = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(following):
        new = graph.placeholder("key" if isinstance(source, random.Key) else "drawn")
    with mode:
        new.meta["val"] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    new.meta["drawn"] = source
    return new


def _name_source(node: fx.Node) -> None:
    """Gives a saving call the source line of its values; AOTAutograd leaves it without."""
    for user in node.users:
        if user.args[1] == 1:
            node.meta.update({key: user.meta[key] for key in graphs.SHARED_META if key in user.meta})


def _replace_pair(node: fx.Node, values: Sequence[fx.Node]) -> None:
    """Sends the users of a call with several results to what stands for each."""
    for user in list(node.users):
        graphs.replace(user, values[user.args[1]])  # type: ignore[index]
    node.graph.erase_node(node)


def _erase_unused(nodes: Sequence[fx.Node]) -> None:
    """Erases allocations that were there to be drawn over: they are the operator's own, not the user's."""
    for node in nodes:
        if is_allocation(node) and not node.users:
            node.graph.erase_node(node)


def _refuse_generator(node: fx.Node) -> None:
    """Dynamo breaks the graph at a generator, but graphs made by other means may hold one.

    Raises:
        TpuLoweringError: TL321.
    """
    schema = compat.schema(node.target)
    if node.op != "call_function" or schema is None:
        return
    if arguments.bind(schema, node.args, node.kwargs).get("generator") is not None:
        raise errors.refuse(
            "TL321",
            str(node.target),
            "expected values from torch's own generator, got a torch.Generator",
            "leave generator= out and seed with torch.manual_seed, or draw in eager and pass the values in",
            graphs.source_line(node),
        )
