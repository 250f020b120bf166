"""The user's table of shardings, applied to the graphs of a function.

Inputs are marked, and ``ir.shardings.constrain`` is put behind the results of named modules and before the gradients of
named parameters::

    linear = aten.mm(silu, weight)                    linear = aten.mm(silu, weight)
                                                      constrain = constrain(linear, (("data",), ("model",)))
    add = aten.add(x, linear)                         add = aten.add(x, constrain)

All else is left to XLA's partitioner. The graph is functional, so a constraint is the value itself, whatever torch has
views of; constraints before AOTAutograd would part a view from its memory.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.capture.names import Names, modules_of
from tpu_lowering.ir import graphs, shardings
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.shardings import constrain
from tpu_lowering.options import Axes, Options


@dataclasses.dataclass(frozen=True)
class Table:
    """Shardings of one graph of Dynamo's.

    Attributes:
        mesh: of the devices.
        given: the user's names with their axes.
        names: of the graph.
    """

    mesh: Mesh
    given: tuple[tuple[str, Axes], ...]
    names: Names

    @staticmethod
    def of(module: fx.GraphModule, options: Options) -> Table | None:
        """The table of a graph of Dynamo's, while Dynamo compiles it; None for a program for one device.

        Raises:
            TpuLoweringError: TL714 for a name that nothing in the function has.
        """
        mesh = shardings.mesh_of(options)
        if mesh is None:
            return None
        names = Names.of(module)
        for name, _ in options.shardings:
            if not any(_matches(one, name) for one in names.known):
                raise errors.refuse(
                    "TL714",
                    f"options['shardings'][{name!r}]",
                    "expected the name of a parameter, a buffer, an argument or a module of the function, got "
                    f"{name!r}",
                    f"the nearest names are {names.near(name)}; compile with fullgraph=True, so that the function is "
                    "one graph",
                )
        return Table(mesh, options.shardings, names)

    def find(self, *names: str) -> tuple[str, Axes] | None:
        """The user's name that one of some names matches first, and its axes."""
        found = ((g, axes) for g, axes in self.given if any(name and _matches(name, g) for name in names))
        return next(found, None)

    def apply(self, graph: fx.Graph, kind: str, saved: Callable[[fx.Node], Axes | None]) -> None:
        """Marks the inputs of a graph of AOTAutograd's, and constrains gradients, or results of modules.

        Args:
            graph: the graph.
            kind: "forward", "backward" or "inference"; of the first two ``constrain_modules`` has seen the joint graph.
            saved: how an input of a backward lies that its forward made.
        """
        for node in graph.find_nodes(op="placeholder"):
            number = compat.input_described(node.meta.get("desc"))
            found = self._of_input(number)
            if not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            if found is not None and number is not None:
                node.meta |= {
                    shardings.KEY: shardings.trimmed(found[1]),
                    **_said(self.names.inputs[number][0], found[0]),
                }
            elif number is None and kind == "backward" and (axes := saved(node)) is not None:
                node.meta[shardings.KEY] = axes
        if kind == "inference":
            output: Any = graph.output_node()
            self.constrain_modules(graph, len(output.args[0]))
        self._constrain_gradients(graph)

    def constrain_modules(self, graph: fx.Graph, results: int) -> None:
        """Puts constraints behind the results of named modules, in a joint graph or one without gradients.

        A result of a module's call is a tensor that was computed in it, and that something outside of it uses. Views of
        it that the call gives too become views of the constrained value, with which they share memory.

        Args:
            graph: of AOTAutograd's.
            results: how many of its results are the function's; gradients follow.
        """
        output: Any = graph.output_node()
        given, done = set(output.args[0][:results]), set[tuple[str, int]]()
        paths: dict[str, tuple[str, tuple[str, Axes] | None]] = {}
        for node in list(graph.nodes):
            if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            for key, path in modules_of(node):
                if path not in paths:
                    paths[path] = (name := self.names.module_name(path), self.find(name))
                (name, found), memory = paths[path], (key, compat.storage_number(node.meta["val"]))
                if found is None or memory in done:
                    continue
                inside = {user for user in node.users if not _is_outside(user, key)}
                if set(node.users) - inside - {output} or node in given:
                    users = [user for user in node.users if user not in inside or _is_view(user, node)]
                    self._constrain(node, found[1], _said(f"the result of {name}", found[0]), users)
                    done.add(memory)
                    break

    def _constrain(self, node: fx.Node, axes: Axes, said: dict[str, str], users: Sequence[fx.Node]) -> None:
        with graphs.inserting_for(node, after=True) as graph:
            new = graphs.call(graph, constrain, node, shardings.trimmed(axes))
        new.meta |= {**said, **{name: node.meta[name] for name in ("partitioner_tag",) if name in node.meta}}
        for user in users:
            user.replace_input_with(node, new)

    def _constrain_gradients(self, graph: fx.Graph) -> None:
        output = graph.output_node()
        results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
        for at, described in enumerate(output.meta.get("desc") or ()):
            number = compat.gradient_described(described)
            found = self._of_input(number)
            if number is not None and found is not None and isinstance(results[at], fx.Node):
                with graph.inserting_before(output):
                    results[at] = graphs.call(graph, constrain, results[at], shardings.trimmed(found[1]))
                results[at].meta |= _said(f"the gradient of {self.names.inputs[number][0]}", found[0])
        output.args = (type(output.args[0])(results),)  # type: ignore[operator]

    def _of_input(self, number: int | None) -> tuple[str, Axes] | None:
        return None if number is None else self.find(*self.names.inputs[number])


def _is_outside(user: fx.Node, key: str) -> bool:
    """Whether a node was called outside of a module's call, in the forward; the output is."""
    is_backward = user.meta.get("partitioner_tag") == "is_backward"
    return not is_backward and key not in dict(modules_of(user))


def _is_view(node: fx.Node, base: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and compat.storage_number(value) == compat.storage_number(base.meta["val"])


def _said(what: str, given: str) -> dict[str, str]:
    return {shardings.SAID_BY: f"{what}, by options['shardings'][{given!r}]"}


def _matches(name: str, given: str) -> bool:
    return fnmatch.fnmatchcase(name, given)
