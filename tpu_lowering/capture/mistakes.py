"""Mistakes that eager refuses: the same call on the same types raises the same exception here.

A matrix product of float32 and bfloat16, the softmax of integers: torch's meta functions let them pass, and so would
JAX, which computes something. What eager refuses is written in its kernels, so they are asked: while AOTAutograd traces
a graph, each operator that autograd would call in eager runs once on small tensors of the same types, and with the same
Python arguments. What its decomposition calls is not looked at: eager never calls that.

A refusal must be the types' own, not that of sizes or values that were made up. So it counts only if

* the operator raises for whatever values, at the true sizes too, and
* says that it has no kernel for the types, or accepts others with the same sizes and values; or the true sizes are
  small, and there are no integers whose values could be at fault.

Anything else is left to run.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs
from tpu_lowering.lower.families import DRAWS, TABLE
from tpu_lowering.session import kept

KINDS = (RuntimeError, TypeError, ValueError, IndexError)
"""What eager's kernels raise; ``NotImplementedError`` is a ``RuntimeError``."""

SMALL = 1 << 12  # elements that an operator is asked about at their true sizes
SIDE = 8  # the largest side of other tensors
MODERATE = 1 << 20  # elements of a call whose sides do not say which Python numbers belong to them
LARGEST = 1 << 24  # elements that are given memory

aten = compat.aten
BY_MASKS = (aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten._unsafe_index_put.default)
BY_POSITIONS = tuple(operator.packet for operator in (
    aten.embedding, aten.gather, aten.index_add, aten.index_copy, aten.index_fill, aten.index_reduce, aten.index_select,
    aten.nll_loss2d_forward, aten.nll_loss_forward, aten.put, aten.scatter, aten.scatter_add, aten.scatter_reduce,
    aten.take,
) if operator)  # fmt: skip
"""Those whose integers are positions: 0 is always one."""

UNASKED = (aten._weight_int8pack_mm.default, aten._weight_int4pack_mm_for_cpu.default)
"""Those that end the process for sizes which are no multiples of their blocks: eager reads beyond its arguments."""

functional = torch.nn.functional
EARLY: tuple[Any, ...] = (functional.interpolate, functional.max_pool1d, torch.max_pool1d, torch.hardshrink)
"""Functions that Dynamo's graph calls as they are, of operators that torch takes apart above its autograd, or that
eager has a kernel of its own for where no gradient is recorded."""

Decompositions = dict[Any, Callable[..., Any]]
"""By operator."""


class RefusedByEager(Exception):
    """A call that eager refuses.

    Attributes:
        error: what eager raises, with a note of the operator and the user's line.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error

    def raise_again(self, *_: Any) -> Any:
        """In place of a graph that makes the call: eager would have raised in it."""
        raise self.error.with_traceback(None)


def refusing(decompositions: Decompositions) -> Decompositions:
    """A table of decompositions that also checks each operator that is lowered or taken apart, as it is traced.

    Raises:
        RefusedByEager: while a graph is traced.
    """
    inside = threading.local()

    def entry(overload: compat.OpOverload) -> Callable[..., Any]:
        decomposition = decompositions.get(overload)

        def traced(*args: Any, **kwargs: Any) -> Any:
            if not getattr(inside, "decomposition", False):
                check(overload, args, kwargs)
            if decomposition is None:
                return NotImplemented
            outer, inside.decomposition = getattr(inside, "decomposition", False), True
            try:
                return decomposition(*args, **kwargs)
            finally:
                inside.decomposition = outer

        return traced

    return {overload: entry(overload) for overload in {*decompositions, *TABLE, *DRAWS}}


class Given(NamedTuple):
    """A tensor among a call's arguments."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Plain(NamedTuple):
    """A Python value among them: 1, 1.0 and True are three."""

    kind: type
    value: Any


def check(overload: Any, args: Sequence[Any], kwargs: dict[str, Any], line: str = "") -> None:
    """Asks eager about a call, made on the user's line.

    Raises:
        RefusedByEager: eager refuses it.
    """
    if overload not in EARLY and (overload.is_view or compat.schema(overload).is_mutable):
        return
    if overload in UNASKED or not _is_on_cpu((args, kwargs)):
        return  # what the CPU's kernels refuse, another device's may take
    if str(getattr(overload, "name", str)()).partition(".")[0].endswith("_backward"):
        return  # torch's own formula, whose types are what meta functions say of a forward's: eager's may be others
    try:
        given = tuple(map(_described, args)), tuple((name, _described(value)) for name, value in kwargs.items())
        refusal, by_sizes = _refusal(overload, *given)
    except (NoNumber, TypeError):  # an argument that is no number yet, or that has no hash
        return
    if refusal is None:
        return
    if by_sizes:
        compat.tree_map(_guarded, (args, kwargs))
    raise RefusedByEager(_noted(overload, given, refusal, line or graphs.source_line_of(compat.traced_line())))


class NoNumber(Exception):
    """A size that no example tells."""


def _described(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return Given(leaf.dtype, tuple(side if type(side) is int else _number(side) for side in leaf.shape))
    if isinstance(leaf, (list, tuple)):
        return tuple(map(_described, leaf))
    if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        leaf = _number(leaf)
    return Plain(type(leaf), torch.device("cpu") if isinstance(leaf, torch.device) else leaf)


def _number(symbolic: Any) -> Any:
    """The example that a size was captured with."""
    hint = symbolic.node.hint
    if not isinstance(hint, (bool, int, float)):
        raise NoNumber
    return hint


def _guarded(leaf: Any) -> None:
    """Has Dynamo compile again for other sizes, which eager may take."""
    for size in leaf.shape if isinstance(leaf, torch.Tensor) else [leaf]:
        if isinstance(size, torch.SymInt):
            int(size)


def _is_on_cpu(tree: Any) -> bool:
    return all(leaf.device.type == "cpu" for leaf in compat.tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _noted(overload: Any, given: Any, refusal: Exception, line: str) -> Exception:
    types = ", ".join(
        f"{str(tensor.dtype)[6:]}{list(tensor.shape)}" for tensor in _DescribedCall(overload, *given).tensors()
    )
    text = errors.Refusal(
        "TL305",
        getattr(overload, "__name__", "") if overload in EARLY else str(overload),
        f"expected arguments that eager takes, got {types}, for which it raises {type(refusal).__name__}",
        "convert them in the compiled function, with .to(dtype), to types that eager takes",
        line,
    )
    error = type(refusal)(*refusal.args)
    error.add_note(str(text))
    return error


@kept(1 << 14, "eager is run to see what it refuses: 50 microseconds to milliseconds a call")
def _refusal(overload: compat.OpOverload, args: Any, kwargs: Any) -> tuple[Exception | None, bool]:
    """What eager raises for a call with such arguments, and whether for its sizes; None if it does not, or if that is
    not certain."""
    with compat.disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return _DescribedCall(overload, args, kwargs).refusal()


def check_early(graph: fx.Graph) -> None:
    """Asks eager about the calls of Dynamo's graph that torch takes apart above its autograd, which no table hears of.

    Raises:
        RefusedByEager: eager refuses one.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target in EARLY:
            args, kwargs = compat.map_arg((node.args, dict(node.kwargs)), lambda used: used.meta["example_value"])
            check(node.target, args, kwargs, graphs.source_line(node))


@dataclasses.dataclass(frozen=True)
class _DescribedCall:
    """A call whose arguments are described by ``Given`` and ``Plain``, in tuples."""

    overload: compat.OpOverload
    args: Any
    kwargs: Any

    def tensors(self) -> list[Given]:
        return _tensors((self.args, self.kwargs))

    def refusal(self) -> tuple[Exception | None, bool]:
        """What eager raises, and whether for the sizes."""
        count = sum(math.prod(tensor.shape) for tensor in self.tensors())
        if count <= SMALL:
            raised = self._raised()
            if raised is None or self._is_of_types(raised):
                return raised, False
            return (raised, True) if self._is_of_sizes() else (None, False)
        smaller = self._smaller()
        raised = smaller._raised()
        if raised is None:
            return None, False
        of_types = smaller._is_of_types(raised)
        raised = self._raised() if of_types or count <= MODERATE else None
        return (raised, False) if raised is not None and (of_types or self._is_of_types(raised)) else (None, False)

    def _is_of_sizes(self) -> bool:
        """Whether no values of integers or masks can be at fault."""
        indices = self.args[1] if self.overload in BY_MASKS else ()
        at = 0
        for index in indices:
            masks = isinstance(index, Given) and index.dtype in (torch.bool, torch.uint8)
            sides = index.shape if masks else ()
            if sides != self.args[0].shape[at : at + len(sides)]:
                return True
            at += len(sides) if masks else 1
        numbers = all(tensor.dtype.is_floating_point or tensor.dtype.is_complex for tensor in self.tensors())
        return numbers or getattr(self.overload, "overloadpacket", None) in BY_POSITIONS

    def _raised(self) -> Exception | None:
        """What it raises for all of the values that are tried; None if it runs for any."""
        raised: list[Exception] = []
        for fill in FILLS:
            error = self._run(fill)
            if error is None:
                return None
            raised.append(error.with_traceback(None))  # what is kept of it would keep the sample tensors
        return raised[0]

    def _is_of_types(self, raised: Exception) -> bool:
        """Whether an exception says that there is no kernel for the types, or the operator runs with other types."""
        if isinstance(raised, NotImplementedError):
            return True
        dtypes = [tensor.dtype for tensor in self.tensors()]
        types = _other_types(dtypes, self.overload in BY_MASKS)
        return any(self._with(dtypes)._raised() is None for dtypes in types)

    def _run(self, fill: Callable[[Given], torch.Tensor]) -> Exception | None:
        def value(leaf: Given | Plain) -> Any:
            return fill(leaf) if isinstance(leaf, Given) else leaf.value

        try:
            self.overload(*_mapped(value, self.args), **{name: _mapped(value, given) for name, given in self.kwargs})
        except torch.linalg.LinAlgError:
            return None  # of values
        except KINDS as error:
            return error
        return None

    def _mapped(self, function: Callable[[Given | Plain], Any]) -> _DescribedCall:
        kwargs = tuple((name, _mapped(function, value)) for name, value in self.kwargs)
        return _DescribedCall(self.overload, _mapped(function, self.args), kwargs)

    def _with(self, dtypes: Sequence[torch.dtype]) -> _DescribedCall:
        left = iter(dtypes)
        return self._mapped(lambda leaf: leaf._replace(dtype=next(left)) if isinstance(leaf, Given) else leaf)

    def _smaller(self) -> _DescribedCall:
        """The call with long sides cut, in the tensors and where a Python number names one."""
        sides = {side for tensor in self.tensors() for side in tensor.shape if side > SIDE}

        def cut(leaf: Given | Plain) -> Given | Plain:
            if isinstance(leaf, Given):
                return leaf._replace(shape=tuple(min(side, SIDE) for side in leaf.shape))
            return Plain(int, SIDE) if leaf.kind is int and leaf.value in sides else leaf

        return self._mapped(cut)


def _mapped(function: Callable[[Given | Plain], Any], tree: Any) -> Any:
    if isinstance(tree, (Given, Plain)):
        return function(tree)
    return tuple(_mapped(function, branch) for branch in tree)


def _tensors(tree: Any) -> list[Given]:
    if isinstance(tree, Given):
        return [tree]
    if isinstance(tree, (Plain, str)):
        return []
    return [tensor for branch in tree for tensor in _tensors(branch)]


def _other_types(dtypes: Sequence[torch.dtype], masks: bool) -> Iterator[list[torch.dtype]]:
    """Types that operators take, in place of given ones: numbers, or numbers and positions.

    Masks among positions are no positions: how many of their elements are true is a matter of values.
    """
    usual = list(map(_usual, dtypes))
    yield usual
    for number in (torch.float32, torch.complex64):
        yield [number for _ in dtypes]
    yield [torch.float32, *usual[1:]]
    if masks:
        yield [*dtypes[:-1], dtypes[0]]
    if not masks or torch.bool not in dtypes:
        yield [torch.float32, *(torch.int64 for _ in dtypes[1:])]
        yield [torch.int64 for _ in dtypes]


def _usual(dtype: torch.dtype) -> torch.dtype:
    """The type that most operators take, of the same kind."""
    if dtype.is_complex:
        return torch.complex64
    return torch.float32 if dtype.is_floating_point else dtype if dtype == torch.bool else torch.int64


def _memory(given: Given, value: int) -> torch.Tensor:
    if math.prod(given.shape) > LARGEST:
        return torch.full((1,) * len(given.shape), value, dtype=given.dtype).expand(given.shape)
    return torch.full(given.shape, value, dtype=given.dtype)


def _zeros(given: Given) -> torch.Tensor:
    """Zeros; a matrix of numbers has ones in its diagonal, so that it can be inverted."""
    made = _memory(given, 0)
    if (
        made.ndim > 1
        and (given.dtype.is_floating_point or given.dtype.is_complex)
        and math.prod(given.shape) <= LARGEST
    ):
        made.diagonal(dim1=-2, dim2=-1).fill_(1)
    return made


def _ones(given: Given) -> torch.Tensor:
    return _memory(given, 1)


FILLS: tuple[Callable[[Given], torch.Tensor], ...] = (_zeros, _ones)
