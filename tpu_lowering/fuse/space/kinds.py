"""What one node does to an iteration space: found from its types and its JAX primitives.

Operators that these do not tell apart are known by name: ``reshape``, ``expand``, ``permute``, ``gather``, ``scatter``,
and those of ``along.ALONG``.

=============  =================================================================================================
pointwise      each element of the result is computed of the same element of every operand, after broadcasting
view           the same elements in the same order, in other dimensions, or repeated along some of size 1
reduction      dimensions of the first operand are gone (or have size 1), the others are as they were
pick           of each row one element, at an index given a row: ``gather`` along one dimension
place          each row with one element replaced, at an index given a row: ``scatter`` along one dimension
along          each element is computed of other elements of its row, by an operator of ``along.ALONG``
constant       equal elements that depend on no tensor
=============  =================================================================================================
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.analyse.pointwise import ELEMENTWISE
from tpu_lowering.codegen.source import IGNORED
from tpu_lowering.fuse.space.along import ALONG
from tpu_lowering.ir import arguments, fakes, graphs
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.lower.families import TABLE
from tpu_lowering.session import Cache

aten = compat.aten

MOVES = frozenset(("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "stop_gradient"))
REDUCTIONS = frozenset((
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin",
))  # fmt: skip
HELD = frozenset((
    torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
))  # fmt: skip
"""Element types that a TPU kernel computes with; it has none of 64 bits."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """See the module's docstring.

    Attributes:
        name: which.
        dims: dimensions of the first operand that are reduced, picked from, placed into or computed along, from 0 up.
        passes: how many reductions follow one on another inside: a variance takes the mean first.
        adds: whether it is nothing but a sum.
    """

    name: Literal["pointwise", "view", "reduction", "pick", "place", "along", "constant"]
    dims: tuple[int, ...] = ()
    passes: int = 0
    adds: bool = False


KIND = "kind"
"""Key of a node's metadata: what was found of it, with what that was read off."""


def kind_of(node: fx.Node) -> Kind | None:
    """What a node is; None for what no row kernel can hold. It is looked at once, and again if the node calls something
    else, with other arguments or on values of other types."""
    if node.op != "call_function":
        return None
    meta, kwargs = node.meta, node.kwargs
    read = [node.target, meta.get("val")]
    for argument in (*node.args, *kwargs.values()) if kwargs else node.args:
        read.append(argument.meta.get("val") if isinstance(argument, fx.Node) else argument)
    known = meta.get(KIND)
    if known is not None and len(known[0]) == len(read) and all(map(operator.is_, known[0], read)):
        return known[1]
    kind = _known.find(_key(node), lambda: _kind_by_types(node)) if node.target in TABLE else None
    if not any(isinstance(item, fx.Node) for value in read if isinstance(value, (list, tuple)) for item in value):
        meta[KIND] = (read, kind)  # metadata is copied, and must not hold another graph's nodes
    return kind


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of a node is computed of the same element of every operand."""
    kind = kind_of(node)
    return kind is not None and kind.name == "pointwise"


def _key(node: fx.Node) -> Hashable:
    """What a node is, is found of these: its operator, its types, and its arguments with types in place of values."""
    return (node.target, fakes.by_type(node), fakes.by_type(node.args), *map(fakes.by_type, node.kwargs.items()))


def _kind_by_types(node: fx.Node) -> Kind | None:
    values = _tensors(node.meta.get("val"))
    if not values or any(value.dtype not in HELD for value in values) or any(0 in value.shape for value in values):
        return None
    given = _given(node)
    taken = [value for name, value in given.items() if isinstance(value, TensorType) and name != "index"]
    if any(type_.element.torch not in HELD or 0 in type_.shape for type_ in taken):
        return None
    return _kind(node.target, given, tuple(map(TensorType.of, values)))


def _given(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by name, with types in place of values."""
    return {name: _described(value) for name, value in graphs.bound(node).items()}


_TRACED = "a row of the table is traced by JAX to see its primitives: milliseconds"
_known: Cache[Hashable, Kind | None] = Cache("fuse.space.kinds", 1 << 14, _TRACED)
_rows: Cache[Hashable, bool] = Cache("fuse.space.kinds.holds_rows", 1 << 14, _TRACED)


def is_constant(node: fx.Node) -> bool:
    kind = kind_of(node)
    return kind is not None and kind.name == "constant"


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors among a node's results; empty if one is none."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return values if all(isinstance(item, torch.Tensor) for item in values) else []


def _described(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return TensorType.of(value.meta["val"]) if isinstance(value.meta["val"], torch.Tensor) else value.meta["val"]
    if isinstance(value, (list, tuple)):
        return tuple(_described(item) for item in value)
    return value


def _kind(target: Any, given: Mapping[str, Any], results: tuple[TensorType, ...]) -> Kind | None:
    operands = [value for value in given.values() if isinstance(value, TensorType)]
    if not operands:
        return Kind("constant") if len(results) == 1 and _is_elementwise(target, given, results) else None
    if target in (aten.reshape.default, aten.expand.default):
        return Kind("view")
    if target is aten.permute.default:
        in_place = all(dim % len(given["dims"]) == at for at, dim in enumerate(given["dims"]))
        return Kind("view") if in_place else None
    if target in (aten.gather.default, aten.scatter.value) and operands[0].shape:
        return _indexed(target, given, operands)
    if target in ALONG:
        dim = ALONG[target].dim(given, operands[0], results[0])
        return None if dim is None else Kind("along", (dim,))
    if _is_elementwise(target, given, results):
        whole = len(results) == 1 and results[0].shape == torch.broadcast_shapes(*(o.shape for o in operands))
        return Kind("pointwise") if whole else None
    return _reduction(target, given, operands[0], results)


def _indexed(target: Any, given: Mapping[str, Any], operands: Sequence[TensorType]) -> Kind | None:
    dim = given["dim"] % len(operands[0].shape)
    index = given["index"].shape
    if len(index) != len(operands[0].shape) or index != (*operands[0].shape[:dim], 1, *operands[0].shape[dim + 1 :]):
        return None
    return Kind("pick", (dim,), 1) if target is aten.gather.default else Kind("place", (dim,))


def _reduction(
    target: Any, given: Mapping[str, Any], source: TensorType, results: tuple[TensorType, ...]
) -> Kind | None:
    rank = len(source.shape)
    named = given.get("dim")
    if "dim" not in given and any(result.shape for result in results):
        return None
    listed = (named,) if isinstance(named, int) else named or range(rank)
    dims = tuple(sorted({int(dim) % rank for dim in listed})) if rank else ()
    kept = tuple(1 if at in dims else size for at, size in enumerate(source.shape))
    reduced = tuple(size for at, size in enumerate(source.shape) if at not in dims)
    if not dims or any(result.shape != (kept if given.get("keepdim") else reduced) for result in results):
        return None
    equations = _equations(target, given, results)
    names = [equation.primitive.name for equation in equations or ()]
    reducing = [name for name in names if name in REDUCTIONS]
    if equations is None or not reducing or not set(names) <= ELEMENTWISE | MOVES | REDUCTIONS:
        return None
    adds = reducing == ["reduce_sum"] and set(names) <= {"reduce_sum", "convert_element_type"} | MOVES
    return Kind("reduction", dims, _depth(equations), adds)


def _depth(equations: Sequence[Any]) -> int:
    """The longest chain of reductions."""
    depth: dict[Any, int] = {}
    for equation in equations:
        before = max((depth.get(atom, 0) for atom in equation.invars if not hasattr(atom, "val")), default=0)
        for variable in equation.outvars:
            depth[variable] = before + (equation.primitive.name in REDUCTIONS)
    return max(depth.values(), default=0)


def _is_elementwise(target: Any, given: Mapping[str, Any], results: tuple[TensorType, ...]) -> bool:
    if torch.Tag.pointwise in target.tags:
        return True
    equations = _equations(target, given, results)
    return equations is not None and all(e.primitive.name in ELEMENTWISE | MOVES for e in equations)


def _equations(target: Any, given: Mapping[str, Any], results: tuple[TensorType | None, ...]) -> list[Any] | None:
    """The JAX primitives of an operator's row in the lowering table, calls taken apart; None if it cannot be traced. A
    result that is None is one that nobody wants."""
    template, types = arguments.split(dict(given), lambda value: isinstance(value, TensorType))
    returns = compat.schema(target).returns
    out = results[0] if len(returns) == 1 and not isinstance(returns[0].type, torch.ListType) else results
    schema = {argument.name: argument for argument in compat.schema(target).arguments}

    def run(*arrays: Any) -> Any:
        filled = arguments.fill(template, arrays)
        positional = [value for name, value in filled.items() if not schema[name].kwarg_only]
        keywords = {n: v for n, v in filled.items() if schema[n].kwarg_only and n not in IGNORED}
        return TABLE[target].rule(*positional, **keywords, out=out)

    try:
        closed = jaxprs.trace(run, types, [result for result in results if result is not None])
    except (errors.TpuLoweringError, NotImplementedError):  # what a rule refuses belongs to no kernel
        return None
    return None if any(getattr(value, "ndim", 0) for value in closed.consts) else closed.jaxpr.eqns


def holds_rows(node: fx.Node) -> bool:
    """Whether an operator's row in the table is pointwise work and reductions, at least one of them, but no reduction
    itself: a softmax, a normalisation, their gradients."""
    if node.target not in TABLE or kind_of(node) is not None:
        return False
    return _rows.find(_key(node), lambda: _parts_hold_rows(node))


def _parts_hold_rows(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    results = tuple(TensorType.of(v) if isinstance(v, torch.Tensor) else None for v in values)
    if not any(results):
        return False
    names = {equation.primitive.name for equation in _equations(node.target, _given(node), results) or ()}
    return bool(names & REDUCTIONS) and names <= ELEMENTWISE | MOVES | REDUCTIONS | {"transpose"}
