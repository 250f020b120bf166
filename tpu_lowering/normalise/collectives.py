"""Collectives of torch.distributed, in every form, to those of ``ir.collectives``; before sizes become numbers.

Before, on rank 1 of two::

    place = device_mesh._runtime_compute_coordinate_on_dim(mesh, 0)       # Sym(u0)
    part = aten.slice.Tensor(x, 0, 4 * place, 4 * place + 4)
    gathered = _c10d_functional.all_gather_into_tensor(part, 2, '0')
    waited = _c10d_functional.wait_tensor(gathered)
    whole = aten.cat.default(aten.split.Tensor(waited, 4), 1)             # items of the split

After, in the graph of a mesh ``axis_1 2``::

    place = mesh_coordinate(("axis_1",), 2)                               # Sym(u0)
    part = aten.slice.Tensor(x, 0, 4 * place, 4 * place + 4)
    whole = all_gather(part, 1, ("axis_1",), 2)

The place of a rank is a number that no size may need (``analyse.numbers``): all ranks have one program.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import collectives, graphs
from tpu_lowering.ir.collectives import Axes
from tpu_lowering.ir.mesh import COORDINATES, MESH, Irregular, Mesh, of_groups
from tpu_lowering.normalise.subgraphs import inline_subgraphs

aten, c10d, autograd, dtensor = compat.aten, compat.c10d, compat.c10d_autograd, compat.dtensor
GROUP = "group_name"


@dataclasses.dataclass(frozen=True)
class Mapped:
    """What a collective of torch's becomes.

    Attributes:
        target: of ``ir.collectives``.
        arguments: those between the tensor and the axes, from the call's arguments by name.
        tensors: the name of its tensor, or of a list of tensors, each of which becomes a call of its own.
    """

    target: Callable[..., Any]
    arguments: Callable[[dict[str, Any]], tuple[Any, ...]]
    tensors: str = "input"


REDUCTIONS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")


@functools.cache
def _table() -> dict[Any, Mapped]:
    gather = lambda given: (0,)  # noqa: E731
    scatter = lambda given: (given["reduce_op"].lower(), 0)  # noqa: E731
    reduce = lambda given: (given["reduce_op"].lower(),)  # noqa: E731
    halves = lambda given: (0, 0)  # noqa: E731
    moved = lambda given: (given["shard_dim"], given["gather_dim"])  # noqa: E731
    whole = Mapped(collectives.all_reduce, reduce)
    rows = {
        c10d.all_reduce.default: whole,
        c10d.all_reduce_coalesced.default: dataclasses.replace(whole, tensors="inputs"),
        c10d.all_gather_into_tensor_coalesced.default: Mapped(collectives.all_gather, gather, "inputs"),
        c10d.reduce_scatter_tensor_coalesced.default: Mapped(collectives.reduce_scatter, scatter, "inputs"),
        c10d.broadcast.default: Mapped(collectives.broadcast, lambda given: (given["src"],)),
        dtensor.shard_dim_alltoall.default: Mapped(collectives.all_to_all, moved),
    }
    for namespace in (c10d, autograd):
        rows |= {
            namespace.all_gather_into_tensor.default: Mapped(collectives.all_gather, gather),
            namespace.reduce_scatter_tensor.default: Mapped(collectives.reduce_scatter, scatter),
            namespace.all_to_all_single.default: Mapped(collectives.all_to_all, halves),
        }
    return {overload: mapped for overload, mapped in rows.items() if overload}


NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "_dtensor", "device_mesh", "symm_mem")


def with_mesh(module: fx.GraphModule) -> fx.GraphModule:
    """A captured graph whose metadata has the mesh of its collectives, if it has any.

    Raises:
        TpuLoweringError: TL701 for groups of ranks that are no grid.
    """
    module = inline_subgraphs(module)
    found = [node for node in module.graph.nodes if _is_distributed(node)]
    if not found:
        return module
    groups = _groups(module)
    try:
        module.meta[MESH] = of_groups(dist.get_rank(), groups.values())[0]
    except Irregular as error:
        raise errors.refuse(
            "TL701",
            ", ".join(str(list(group)) for group in dict.fromkeys(groups.values())),
            f"expected groups of ranks that are lines or planes of one grid, got {error}",
            "make the groups with torch.distributed.device_mesh.init_device_mesh",
            graphs.source_line(next(iter(groups))),
        ) from None
    return module


def take_collectives(module: fx.GraphModule, own_parts: bool = False) -> fx.GraphModule:
    """A copy of a graph that has a mesh, with collectives of this package; itself if it has none.

    Args:
        module: see ``with_mesh``.
        own_parts: whether parts at a rank's own place are meant as such. Torch may put the place into the graph as a
            number; so may the user, who means the same part on all ranks. Either way the graph gives what it gave on
            this rank, and all ranks have one program only where the place was meant.

    Raises:
        TpuLoweringError: TL705 for a collective that no program of all ranks can have.
    """
    if MESH not in module.meta:
        return module
    module = graphs.copy_module(module)
    _Rewriter(module).run()
    if own_parts:
        _take_own_parts(module.graph, module.meta[MESH])
    return module


def name_groups(graph: fx.Graph) -> None:
    """Has every collective name its group, in place: torch cannot copy a graph that holds the group itself."""
    for node in list(graph.nodes):
        if _is_distributed(node) and node.target in _table():
            given = graphs.bound(node)[GROUP]
            if isinstance(given, fx.Node):
                with compat.disable_current_modes():
                    name = compat.group_name(_value(given))
                node.args = tuple(name if argument is given else argument for argument in node.args)
    for node in reversed(list(graph.nodes)):
        if not node.users and ((_is_distributed(node) and _is_object(node)) or node.op == "get_attr"):
            graph.erase_node(node)


def _take_own_parts(graph: fx.Graph, mesh: Mesh) -> None:
    """Rewrites splits of which one part is used, the one at this rank's place along an axis, in place."""
    for item, axis in _parts_at_own_place(graph, mesh):
        split: Any = item.args[0]
        given = graphs.bound(split)
        dim = given["dim"] % given["self"].meta["val"].ndim
        with graphs.inserting_for(item):
            new = _own_part(graph, given["self"], dim, (axis,), len(split.meta["val"]))
        new.meta["val"] = item.meta["val"]
        graphs.replace(item, new)
    graphs.eliminate_dead_code(graph)


def refuse_own_parts(graph: fx.Graph, mesh: Mesh) -> None:
    """Checks that no rank's own place may be in a graph as a number, where no other rank can be asked for its own.

    Raises:
        TpuLoweringError: TL705.
    """
    for item, _ in _parts_at_own_place(graph, mesh):
        split: Any = item.args[0]
        if graphs.is_call(split.args[0], collectives.all_gather):
            got = "got a part, at this rank's place, of what all have gathered; torch exchanges so on meshes of CPUs"
            raise _impossible(item, got)


def _parts_at_own_place(graph: fx.Graph, mesh: Mesh) -> list[tuple[fx.Node, str]]:
    """The used parts of splits that are at this rank's place along an axis, and that axis."""
    places = mesh.coordinates(dist.get_rank())
    found: list[tuple[fx.Node, str]] = []
    for node in graph.nodes:
        if not graphs.is_call(node, aten.split.Tensor) or len(node.users) != 1:
            continue
        (item,), given, parts = node.users, graphs.bound(node), node.meta["val"]
        sizes = {part.shape[given["dim"]] for part in parts}
        axis = next((a for a in mesh.axes if mesh.size((a,)) == len(parts) and places[a] == item.args[1]), None)
        if len(sizes) == 1 and axis is not None:
            found.append((item, axis))
    return found


def _own_part(graph: fx.Graph, value: fx.Node, dim: int, axes: Axes, count: int) -> fx.Node:
    """A rank's own part; of what all ranks have gathered, in one step with the gathering."""
    if graphs.is_call(value, collectives.all_gather) and value.args[2] == axes and value.args[1] != dim:
        return graph.call_function(collectives.all_to_all, (value.args[0], dim, value.args[1], axes, count))
    return graph.call_function(collectives.own_part, (value, dim, axes, count))


def _groups(module: fx.GraphModule) -> dict[fx.Node, tuple[int, ...]]:
    """The ranks that each call is among."""
    with compat.disable_current_modes():
        found = [(node, _ranks(node)) for node in module.graph.nodes if _is_distributed(node)]
    return {node: ranks for node, ranks in found if ranks is not None}


def _ranks(node: fx.Node) -> tuple[int, ...] | None:
    """The ranks that a call is among; None for one that is among none."""
    if node.target is compat.coordinate_operator():
        full, dim = node.args
        own = compat.own_mesh(_value(full))
        (place,) = (own == dist.get_rank()).nonzero()
        index = [slice(None) if at == dim else int(one) for at, one in enumerate(place)]
        return tuple(own[tuple(index)].tolist())
    if node.target not in _table():
        return None
    return compat.ranks_of(_value(graphs.bound(node)[GROUP]))


def _value(node: Any) -> Any:
    """What a node that depends on no tensor of the user's stands for."""
    if not isinstance(node, fx.Node):
        return node
    if node.op == "placeholder":
        return compat.real_object(node.meta["val"])
    if node.op == "get_attr":
        return compat.real_object(getattr(node.graph.owning_module, str(node.target)))
    args, kwargs = compat.map_arg((node.args, node.kwargs), _value)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_distributed(node: fx.Node) -> bool:
    return isinstance(node.target, compat.OpOverload) and node.target.namespace in NAMESPACES


def _is_object(node: fx.Node) -> bool:
    """Whether a node gives a group or a mesh. A forward gives it to its backward, which has its own way to it."""
    return not any(isinstance(leaf, torch.Tensor) for leaf in compat.tree_leaves(node.meta.get("val")))


class _Rewriter:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.table = _table()
        self.groups = _groups(module)
        self.mesh, self.along = of_groups(dist.get_rank(), self.groups.values())

    def run(self) -> None:
        found = [node for node in self.graph.nodes if _is_distributed(node)]
        coordinates: dict[Any, tuple[Axes, int]] = {}
        for node in found:
            axes = self.along.get(self.groups.get(node, ()), ())
            if node.target is c10d.wait_tensor.default:
                graphs.replace(node, node.args[0])  # type: ignore[arg-type]
            elif node.target is compat.coordinate_operator():
                node.target, node.args = collectives.mesh_coordinate, (axes, self.mesh.size(axes))
                coordinates[node.meta["val"].node.expr] = node.args
            elif node.target in self.table:
                self._rewrite(node, self.table[node.target], axes)
        for node in reversed(list(self.graph.nodes)):
            if _is_distributed(node) and not node.users:
                self.graph.erase_node(node)
            elif _is_distributed(node) and not _is_object(node):
                raise _impossible(node, f"got {node.target}")
        graphs.eliminate_dead_code(self.graph)
        self._join()
        self.module.meta[COORDINATES] = coordinates

    def _rewrite(self, node: fx.Node, mapped: Mapped, axes: Axes) -> None:
        given, count = graphs.bound(node), self.mesh.size(axes)
        _check(node, given, count)
        arguments = mapped.arguments(given)
        many = isinstance(given[mapped.tensors], (list, tuple))
        tensors = given[mapped.tensors] if many else [given[mapped.tensors]]
        values = node.meta["val"] if many else [node.meta["val"]]
        with graphs.inserting_for(node):
            pairs = zip(tensors, values, strict=True)
            new = [self._call(mapped.target, tensor, arguments, axes, value) for tensor, value in pairs]
        if not many:
            graphs.replace(node, new[0])
            return
        for user in list(node.users):
            graphs.replace(user, new[user.args[1]])  # type: ignore[index]
        self.graph.erase_node(node)

    def _call(self, target: Any, tensor: fx.Node, arguments: Sequence[Any], axes: Axes, value: Any) -> fx.Node:
        if not axes:  # of one rank
            new = self.graph.call_function(aten.clone.default, (tensor,))
        else:
            new = self.graph.call_function(target, (tensor, *arguments, axes, self.mesh.size(axes)))
        new.meta["val"] = value
        return new

    def _join(self) -> None:
        """Makes gathers and scatters along other dimensions than the first one call each: torch cuts what it gathered
        along the first, and joins the parts along the other."""
        for node in list(self.graph.nodes):
            if graphs.is_call(node, aten.cat.default):
                self._join_gather(node)
            elif graphs.is_call(node, collectives.reduce_scatter):
                self._join_scatter(node)
        graphs.eliminate_dead_code(self.graph)

    def _join_gather(self, cat: fx.Node) -> None:
        source = _all_parts(cat, 0)
        dim = int(graphs.bound(cat)["dim"]) % max(1, cat.meta["val"].ndim)
        if source is None or not graphs.is_call(source, collectives.all_gather) or source.args[1] != 0:
            return
        tensor, _, axes, count = source.args
        if len(cat.args[0]) == count and len(source.users) == len(set(_part_calls(cat))):  # type: ignore[arg-type]
            with graphs.inserting_for(cat):
                new = self.graph.call_function(collectives.all_gather, (tensor, dim, axes, count))
            new.meta["val"] = cat.meta["val"]
            graphs.replace(cat, new)

    def _join_scatter(self, node: fx.Node) -> None:
        cat, reduction, _, axes, count = node.args
        if not graphs.is_call(cat, aten.cat.default) or graphs.bound(cat)["dim"] != 0 or len(cat.args[0]) != count:  # type: ignore[arg-type, union-attr]
            return
        dim = next((d for d in range(1, node.meta["val"].ndim) if _all_parts(cat, d) is not None), None)  # type: ignore[arg-type]
        if dim is not None:
            node.args = (_all_parts(cat, dim), reduction, dim, axes, count)  # type: ignore[arg-type]


def _part_calls(cat: fx.Node) -> list[fx.Node]:
    """The calls that cut the parts which are joined: a split, or slices."""
    parts: Any = cat.args[0]
    return [part.args[0] if part.target is operator.getitem else part for part in parts]


def _all_parts(cat: fx.Node, dim: int) -> fx.Node | None:
    """What was cut into equal parts along a dimension, if exactly these are joined, in order."""
    parts: Any = cat.args[0]
    sources: set[fx.Node] = set()
    start = 0
    for at, part in enumerate(parts):
        cut = part.args[0] if graphs.is_call(part, operator.getitem) and part.args[1] == at else part
        if graphs.is_call(cut, aten.split.Tensor) and cut is not part:
            given = graphs.bound(cut)
            if given["dim"] % given["self"].meta["val"].ndim != dim:
                return None
            sources.add(given["self"])
        elif graphs.is_call(part, aten.slice.Tensor):
            given = graphs.bound(part)
            if given["dim"] != dim or given["start"] != start or given["step"] != 1:
                return None
            sources.add(given["self"])
        else:
            return None
        start += part.meta["val"].shape[dim]
    (source, *others) = sources
    sizes = {part.meta["val"].shape[dim] for part in parts}
    whole = not others and source.meta["val"].ndim > dim and source.meta["val"].shape[dim] == start
    return source if whole and len(sizes) == 1 else None


def _check(node: fx.Node, given: dict[str, Any], count: int) -> None:
    """Refuses what no program of all ranks can have.

    Raises:
        TpuLoweringError: TL705.
    """
    reduction = given.get("reduce_op")
    if reduction is not None and reduction.lower() not in REDUCTIONS:
        raise _impossible(node, f"got the reduction {reduction!r}")
    for name in ("input_split_sizes", "output_split_sizes"):
        splits = given.get(name)
        if splits is not None and len(set(splits)) > 1:
            raise _impossible(node, f"got {name} = {list(splits)}: shapes would differ from rank to rank")


def _impossible(node: fx.Node, got: str) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL705",
        str(node.target),
        f"expected a collective of equal parts (all_reduce, all_gather, reduce_scatter, all_to_all, broadcast), {got}",
        'run it in eager torch, between two programs, with options={"fallback": "eager"}',
        graphs.source_line(node),
    )
