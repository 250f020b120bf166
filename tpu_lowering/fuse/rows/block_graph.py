"""A plan's members over one block of its space, as a graph of their own: what one step of the kernel computes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.codegen import source
from tpu_lowering.fuse.rows.tiles import Tiling
from tpu_lowering.fuse.space.along import ALONG
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_plans import Product, RowOperand, RowPlan
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.fuse.space.spaces import AccessMap, Dim, aligned, dims_of
from tpu_lowering.ir import fakes, graphs
from tpu_lowering.ir.rows import group_sums, row_product

aten = compat.aten


def held_as(dtype: torch.dtype) -> torch.dtype:
    """The element type of a tensor in the kernel's memory: JAX's kernels hold a bool in 4 bytes, an int8 does; an
    index has 32 bits."""
    return {torch.bool: torch.int8, torch.int64: torch.int32}.get(dtype, dtype)


def run_along(access: AccessMap, order: Sequence[Dim], sizes: Any) -> tuple[int, ...]:
    """The shape of a value with one dimension for each of a space's: 1 where it does not run."""
    dims = dims_of(access)
    return tuple(sizes(dim) if dim in dims else 1 for dim in order)


def distinct(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Names of arguments: a node can be a factor of a product and an operand of something else."""
    found: list[str] = []
    for name in names:
        new = name
        while new in found or new in taken:
            new += "_"
        found.append(new)
    return found


class BlockGraph:
    """The graph of a plan's members over one block.

    Attributes:
        in_kernel: whether a kernel runs it. If not, it is the plain form that XLA compiles to be compared with, and
            operators along rows stay ATen's.
        graph: its inputs are the operands' blocks, then a mask for each ragged summed dimension.
        module: with the graph, for whoever generates code of it.
        masks: those dimensions.
    """

    def __init__(self, plan: RowPlan, tiling: Tiling, in_kernel: bool = True) -> None:
        self.plan, self.tiling, self.in_kernel = plan, tiling, in_kernel
        self.order = plan.region.space.order()
        self.graph = fx.Graph()
        self.values: dict[Any, fx.Node] = {}
        self.results: dict[Any, list[fx.Node]] = {}
        self.masks: list[Dim] = []
        self.inferred: dict[Hashable, Any] = {}
        mode = compat.FakeTensorMode()
        names = distinct([operand.node.name for operand in plan.operands()])
        for operand, name in zip(plan.operands(), names, strict=True):
            self._placeholder(mode, operand, name)
        sizes = plan.region.space.sizes
        for dim in self.order:
            if dim in self._masked_dims() and sizes[dim] % tiling.block(dim):
                self.masks.append(dim)
                node = self.graph.placeholder(f"inside_{self.order.index(dim)}")
                with mode:
                    node.meta["val"] = torch.empty(self.shape(((dim,),)), dtype=torch.bool)
                self.values[dim] = node
        self._more_inputs(mode)
        self.read = {operand: self._read(operand) for operand in plan.operands()}
        for member in plan.members:
            self._compute(member)
        self.graph.output(tuple(self._stored(member) for member in plan.outputs))
        graphs.eliminate_dead_code(self.graph)

    @functools.cached_property
    def module(self) -> fx.GraphModule:
        return graphs.module_of({}, self.graph)

    def _masked_dims(self) -> frozenset[Dim]:
        """The dimensions along which what lies outside of the array must not count."""
        return summed_dims(self.plan)

    def _more_inputs(self, mode: Any) -> None:
        """Adds inputs after the masks."""

    def shape(self, access: AccessMap) -> tuple[int, ...]:
        return run_along(access, self.order, self.tiling.block)

    def taken(self, operand: RowOperand) -> tuple[int, ...]:
        """The block of an operand."""
        axes = operand.in_memory(self.plan.region.space)
        return tuple(size if dim is None else self.tiling.block(dim) for dim, size in axes)

    def _placeholder(self, mode: Any, operand: RowOperand, name: str) -> None:
        node = self.graph.placeholder(name)
        with mode:
            node.meta["val"] = torch.empty(self.taken(operand), dtype=held_as(operand.node.meta["val"].dtype))
        self.values[operand] = node

    def _read(self, operand: RowOperand) -> fx.Node:
        node = self.values[operand]
        if operand.node.meta["val"].dtype != torch.bool:
            return node
        wide = self._add(aten._to_copy.default, node, dtype=torch.int32)
        return self._add(aten.ne.Scalar, wide, 0)

    def _stored(self, member: fx.Node) -> fx.Node:
        node = self.values[member]
        wanted = self.shape(self.plan.region.accesses[member])
        if shape_of(node) != wanted:
            node = self._add(aten.expand.default, node, list(wanted))
        if node.meta["val"].dtype == torch.bool:
            node = self._add(aten._to_copy.default, node, dtype=torch.int8)
        return node

    def _value(self, member: fx.Node, used: fx.Node) -> fx.Node:
        """What stands for an operand of a member."""
        if used in self.values:
            return self.values[used]
        if (member, used) in self.plan.bound:
            return self.read[self.plan.bound[member, used]]
        self.values[used] = self._constant(used)
        return self.values[used]

    def _constant(self, node: fx.Node) -> fx.Node:
        """A node of equal elements, as one element."""
        value = node.meta["val"]
        element = constant_element(node)
        return self._call(node, aten.full.default, [1] * len(self.order), element, dtype=value.dtype)

    def _add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call whose value is inferred once for operands of equal types: all targets are pure."""
        key = (target, fakes.by_type(args), *map(fakes.by_type, kwargs.items()))
        if key not in self.inferred:
            node = graphs.call(self.graph, target, *args, **kwargs)
            self.inferred[key] = node.meta["val"]
            return node
        node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = self.inferred[key]
        return node

    def _call(self, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self._add(target, *args, **kwargs)
        node.meta |= {key: like.meta[key] for key in graphs.SHARED_META if key in like.meta}
        return node

    def _compute(self, member: fx.Node) -> None:
        kind = kind_of(member)
        if member in self.plan.products:
            self.values[member] = self._multiply(member, self.plan.products[member])
        elif kind is None and member.args[0] in self.results:
            self.values[member] = self.results[member.args[0]][member.args[1]]  # type: ignore[index]
        elif kind is None:  # a result of a reduction with several
            self.values[member] = self._call(member, member.target, self.values[member.args[0]], member.args[1])  # type: ignore[index, arg-type]
        elif kind.name == "view":
            self.values[member] = self._value(member, member.args[0])  # type: ignore[arg-type]
        elif member in self.plan.groups:
            self.results[member] = self._reduce_groups(member, self.plan.groups[member])
            self.values[member] = self.results[member][0]
        elif kind.name == "reduction":
            self.values[member] = self._reduce(member)
        elif kind.name in ("pick", "place"):
            self.values[member] = self._at_index(member, kind.name)
        elif kind.name == "along":
            self.values[member] = self._along(member, kind.dims[0])
        else:
            self.values[member] = self._pointwise(member, lambda used: self._value(member, used))

    def _multiply(self, member: fx.Node, product: Product) -> fx.Node:
        bias = None if product.bias is None else self.read[product.bias]
        left, right, dtype = self.read[product.left], self.read[product.right], member.meta["val"].dtype
        return self._call(product.node, row_product, left, right, bias, product.transposed, dtype)

    def _pointwise(self, member: fx.Node, value: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A member's operator, with what stands for each of its operands."""
        return on_block(self._add, member, value)

    def _whole(self, member: fx.Node, access: AccessMap) -> fx.Node:
        """The first operand of a member, in full along the dimensions of an access."""
        node = self._value(member, member.args[0])  # type: ignore[arg-type]
        wanted = self.shape(access)
        return node if shape_of(node) == wanted else self._call(member, aten.expand.default, node, list(wanted))

    def _reduce(self, member: fx.Node) -> fx.Node:
        region, source = self.plan.region, member.args[0]
        dims = region.reductions[member]
        access = source_access(self.plan, member)
        whole = self._whole(member, access)
        for dim in self.masks:
            if dim in dims and region.is_sum(member):
                zero = self._call(member, aten.full.default, [1] * len(self.order), 0, dtype=whole.meta["val"].dtype)
                whole = self._call(member, aten.where.self, self.values[dim], whole, zero)
        positions = [self.order.index(dim) for dim in self.order if dim in dims]
        given: dict[str, Any] = {**graphs.bound(member)}
        target: Any = member.target
        if "dim" not in given:
            target = target.overloadpacket.dim_IntList if target is aten.sum.default else target.overloadpacket.dim
        schema = {argument.name: argument for argument in compat.schema(target).arguments}
        single = str(schema["dim"].type) in ("int", "Optional[int]", "int?")
        given |= {"dim": positions[0] if single else positions, "keepdim": True}
        del given[next(iter(given))]
        assert isinstance(source, fx.Node)
        if region.is_sum(member) and whole.meta["val"].dtype.is_floating_point:
            given["dtype"] = torch.float32
        names = [name for name in schema if name in given and given[name] is not None]
        keywords = {name: given[name] for name in names if schema[name].kwarg_only}
        first = [given[name] for name in schema if name in given and not schema[name].kwarg_only]
        return self._call(member, target, whole, *first, **keywords)

    def _reduce_groups(self, member: fx.Node, count: int) -> list[fx.Node]:
        """The results of a reduction that takes so many elements together along the last dimension: sums, or what is
        made of them."""
        access, given = source_access(self.plan, member), graphs.bound(member)
        whole = self._call(member, aten._to_copy.default, self._whole(member, access), dtype=torch.float32)
        positions = [at for at, dim in enumerate(self.order) if dim in self.plan.region.reductions[member]]
        across = [at for at in positions if at != len(self.order) - 1]
        size = count * math.prod(shape_of(whole)[at] for at in across)

        def sums(values: fx.Node) -> fx.Node:
            return self._call(member, group_sums, values, across, count)

        total = sums(whole)
        if "sum" in compat.schema(member.target).name:
            return [_like(member, total)]
        mean = self._call(member, aten.div.Scalar, total, size)
        if "var" not in compat.schema(member.target).name:
            return [_like(member, mean)]
        correction = given.get("correction")
        away = self._call(member, aten.sub.Tensor, whole, mean)
        squares = sums(self._call(member, aten.mul.Tensor, away, away))
        variance = self._call(member, aten.div.Scalar, squares, size - (1 if correction is None else correction))
        return [variance, mean]

    def _along(self, member: fx.Node, dim: int) -> fx.Node:
        """An operator along whole rows."""
        access = self.plan.region.accesses[member]
        whole, position = self._whole(member, access), self.order.index(access[dim][0])
        row = ALONG[member.target]
        call = row.in_kernel if self.in_kernel else row.plain
        target, args, keywords = call(graphs.bound(member), position, len(self.order), member.meta["val"].dtype)
        return self._call(member, target, whole, *args, **keywords)

    def _at_index(self, member: fx.Node, name: str) -> fx.Node:
        """``gather`` and ``scatter`` along a row by comparing every place of it with the index."""
        given = graphs.bound(member)
        access = source_access(self.plan, member)
        (dim,) = access[kind_of(member).dims[0]]  # type: ignore[union-attr]
        found = self._call(member, aten.eq.Tensor, self._places(member, dim), self._value(member, given["index"]))
        if name == "place":
            whole = self._whole(member, access)
            dtype = whole.meta["val"].dtype
            value = self._call(member, aten.full.default, [1] * len(self.order), given["value"], dtype=dtype)
            return self._call(member, aten.where.self, found, value, whole)
        return self._picked(member, member.args[0], dim, found)  # type: ignore[arg-type]

    def _places(self, member: fx.Node, dim: Dim) -> fx.Node:
        """The place of each element along a dimension."""
        places = self._call(member, aten.arange.start_step, 0, self.tiling.block(dim), 1, dtype=torch.int32)
        return self._call(member, aten.reshape.default, places, list(self.shape(((dim,),))))

    def _picked(self, member: fx.Node, used: fx.Node, dim: Dim, found: fx.Node) -> fx.Node:
        """The element of an operand where ``found`` holds: of a value computed of one value of the row, point by
        point, what is computed of that one's element."""
        source = self._one_source(used, dim)
        if source is not None:
            return self._pointwise(
                used, lambda o: self._picked(used, o, dim, found) if o is source else self._value(used, o)
            )
        whole = self._value(member, used)
        dtype = whole.meta["val"].dtype
        zero = self._call(member, aten.full.default, [1] * len(self.order), 0, dtype=dtype)
        chosen = self._call(member, aten.where.self, found, whole, zero)
        return self._call(member, aten.sum.dim_IntList, chosen, [self.order.index(dim)], True, dtype=dtype)

    def _one_source(self, node: fx.Node, dim: Dim) -> fx.Node | None:
        """The one operand of a pointwise member that runs along a dimension, if it is no narrower than the member:
        comparing places gives a mask for elements of 4 bytes."""
        kind = kind_of(node)
        if node not in self.plan.members or kind is None or kind.name != "pointwise":
            return None
        running = [used for used in tensor_operands(node) if dim in self._dims(node, used)]
        if len(running) != 1 or running[0].meta["val"].itemsize < node.meta["val"].itemsize:
            return None
        return running[0]

    def _dims(self, member: fx.Node, used: fx.Node) -> frozenset[Dim]:
        """The dimensions that an operand of a member runs along."""
        if (member, used) in self.plan.bound:
            return dims_of(self.plan.bound[member, used].access)
        return dims_of(self.plan.region.accesses[used]) if used in self.plan.region.accesses else frozenset()


def summed_dims(plan: RowPlan) -> frozenset[Dim]:
    """The dimensions that sums over the grid run over."""
    return frozenset(dim for node in plan.members if plan.region.is_sum(node) for dim in plan.region.reductions[node])


def source_access(plan: RowPlan, member: fx.Node) -> AccessMap:
    """The access of a member's first operand."""
    source = member.args[0]
    assert isinstance(source, fx.Node)
    if (member, source) in plan.bound:
        return aligned(plan.bound[member, source].access, len(shape_of(source)))
    if source in plan.region.accesses:
        return plan.region.accesses[source]
    return plan.region.accesses[member]  # a row of constants


def constant_element(node: fx.Node) -> Any:
    """The value of a constant's elements."""
    given = graphs.bound(node)
    for name in ("size", "shape"):
        if name in given:
            given[name] = [1]
    args, kwargs = split_arguments(node, given)
    return node.target(*args, **kwargs).reshape(-1)[0].item()  # type: ignore[operator]


def split_arguments(node: fx.Node, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by name as positional ones and keywords, without those that say where a tensor lies."""
    named = {argument.name for argument in compat.schema(node.target).arguments if argument.kwarg_only}
    keywords = {n: v for n, v in given.items() if n in named and v is not None and n not in source.IGNORED}
    return [value for name, value in given.items() if name not in named], keywords


def on_block(call: Callable[..., fx.Node], member: fx.Node, value: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """A pointwise member on a block, in a graph of its own, with what stands for each of its operands there.

    Args:
        call: adds a call of a target, with arguments, to that graph.
        member: what is computed.
        value: what stands for an operand.
    """
    args, kwargs = split_arguments(member, compat.map_arg(dict(graphs.bound(member)), value))
    return _like(member, call(member.target, *args, **kwargs))


def _like(member: fx.Node, node: fx.Node) -> fx.Node:
    """A node that computes a member on a block, in the member's dtype: a scalar tensor promotes nothing, but has
    dimensions in a block."""
    wanted = member.meta["val"].dtype
    if node.meta["val"].dtype != wanted:
        node.meta["val"] = node.meta["val"].to(wanted)
    node.meta |= {key: member.meta[key] for key in graphs.SHARED_META if key in member.meta}
    return node
