"""Runs calls in eager and compiled, and says how they differ. Tolerance goes by dtype alone.

A result passes if every element is within ``TOLERANCE`` of eager's or, where rounding errors are larger than
that in eager too, if its error against the same call in float64 is at most twice eager's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from tests.opinfo.calls import Call, Instance, seed, tensors_of

# Relative to the element, and relative to the largest element of the tensor (at least to 1).
TOLERANCE = {
    torch.float16: (1e-2, 1e-3),
    torch.bfloat16: (1.6e-2, 4e-3),
    torch.complex32: (1e-2, 1e-3),
    torch.float32: (1e-4, 1e-5),
    torch.complex64: (1e-4, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex128: (1e-7, 1e-7),
}
UNDEFINED = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one call made: its result, the gradients asked for, and its tensors as they are afterwards."""

    result: Any
    gradients: list[torch.Tensor | None]
    inputs: list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a call fails: a code (of an error of ours, an exception's name, or what differs) and one line."""

    code: str
    message: str


class Differs(AssertionError):
    """A result that is not eager's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def run(instances: list[Instance]) -> list[Any]:
    """What is compiled: some calls, one after the other."""
    return [instance[0](*instance[1], **instance[2]) for instance in instances]


def execute(calls: Sequence[Call], backend: str | None, number: int = 0) -> list[Outcome]:
    """Makes the calls on fresh tensors as one function, compiled by ``backend`` (None: eager)."""
    instances = [call.fresh() for call in calls]
    if backend is not None:
        torch._dynamo.reset()
    function = run if backend is None else torch.compile(run, backend=backend, fullgraph=True)
    seed(number)
    results = function([(x.function, x.args, x.kwargs) for x in instances])
    return [_outcome(*each) for each in zip(calls, instances, results, strict=True)]


def _outcome(call: Call, instance: Instance, result: Any) -> Outcome:
    inputs = instance.tensors()
    wanted = [x for x in inputs if x.requires_grad]
    gradients = gradients_of(call.determined(result), wanted) if wanted else []
    return Outcome(_detached(result), gradients, [x.detach() for x in inputs])


def gradients_of(result: Any, wanted: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gradients by ``wanted``, for the same cotangents whoever computed the result."""
    results = [x for x in tensors_of(result) if x.requires_grad]
    if not results:
        return []
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in results]
    return list(torch.autograd.grad(results, wanted, cotangents, allow_unused=True))


def _detached(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def compare(call: Call, got: Outcome, eager: Outcome, values: bool = True) -> None:
    """Raises ``Differs`` unless the outcomes agree; without ``values``, only types and shapes must."""
    exactly: list[Outcome] = []

    def truth(part: Callable[[Outcome], Any]) -> list[Any]:
        if not exactly:
            exactly.append(_in_float64(call))
        return pytree.tree_leaves(part(exactly[0]), is_leaf=_is_none)

    for code, part in PARTS.items():
        mine, theirs = pytree.tree_leaves(part(call, got)), pytree.tree_leaves(part(call, eager))
        if len(mine) != len(theirs):
            raise Differs(code, f"expected {len(theirs)} values, got {len(mine)}")
        for index, (x, y) in enumerate(zip(mine, theirs, strict=True)):
            compare_leaf(code, x, y, values, lambda part=part, index=index: truth(lambda o: part(call, o))[index])


PARTS: dict[str, Callable[[Call, Outcome], Any]] = {
    "result": lambda call, outcome: call.determined(outcome.result),
    "gradient": lambda call, outcome: outcome.gradients,
    "input": lambda call, outcome: outcome.inputs,
}


def _is_none(value: Any) -> bool:
    return value is None


def _in_float64(call: Call) -> Outcome:
    instance = call.fresh(torch.float64)
    seed()
    return _outcome(call, instance, instance.function(*instance.args, **instance.kwargs))


def compare_leaf(code: str, got: Any, eager: Any, values: bool, truth: Callable[[], Any]) -> None:
    """Compares two leaves of a result; ``truth`` gives that leaf computed in float64."""
    if not isinstance(eager, torch.Tensor):
        if type(got) is not type(eager) or (values and got != eager and eager == eager):
            raise Differs(code, f"expected {eager!r}, got {got!r}")
        return
    if not isinstance(got, torch.Tensor) or (got.dtype, got.shape, got.layout) != (
        eager.dtype,
        eager.shape,
        eager.layout,
    ):
        raise Differs(f"{code} type", f"expected {describe(eager)}, got {describe(got)}")
    if not values or _is_close(got, eager):
        return
    if eager.dtype not in TOLERANCE or not _is_as_good(got, eager, truth):
        raise Differs(code, difference(got, eager))


def describe(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    dense = dense.resolve_conj().resolve_neg()
    return dense.to(torch.complex64) if dense.dtype == torch.complex32 else dense  # which has no comparison


def _is_close(got: torch.Tensor, eager: torch.Tensor) -> bool:
    tolerance = TOLERANCE.get(eager.dtype)
    got, eager = _dense(got), _dense(eager)
    if tolerance is None:
        return torch.equal(got, eager)
    relative, of_largest = tolerance
    finite = eager[eager.isfinite()]
    largest = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
    return torch.allclose(got, eager, rtol=relative, atol=of_largest * largest, equal_nan=True)


def _is_as_good(got: torch.Tensor, eager: torch.Tensor, truth: Callable[[], Any]) -> bool:
    """Whether the error is at most twice eager's, and NaN and infinities stand in the same places."""
    try:
        exact = truth()
    except (RuntimeError, TypeError, NotImplementedError, ValueError):
        return False  # no float64 form
    got, eager = _dense(got), _dense(eager)
    if not isinstance(exact, torch.Tensor) or exact.shape != eager.shape:
        return False
    if not torch.equal(got.isfinite(), eager.isfinite()):
        return False
    finite = eager.isfinite() & exact.isfinite()
    if not finite.any():
        return False
    ours, theirs = ((x.to(exact.dtype) - exact)[finite].abs().max() for x in (got, eager))
    return bool(ours <= 2 * theirs)


def difference(got: torch.Tensor, eager: torch.Tensor) -> str:
    """Where two tensors of the same type differ most, in one line."""
    got, eager = _dense(got).reshape(-1), _dense(eager).reshape(-1)
    differs = ~torch.isclose(got.to(torch.complex128), eager.to(torch.complex128), rtol=1e-9, atol=0, equal_nan=True)
    size = (got.to(torch.complex128) - eager.to(torch.complex128)).abs().nan_to_num(torch.inf)
    worst = int(torch.where(differs, size, -1).argmax())
    return f"{int(differs.sum())} of {got.numel()} elements differ; at {worst} expected {eager[worst].item()}, got {got[worst].item()}"


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two eager runs agree bit by bit; random operators do not."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(_equal(x, y) for each in pairs for x, y in zip(*map(tensors_of, map(_parts, each)), strict=True))


def _parts(outcome: Outcome) -> Any:
    return (outcome.result, outcome.gradients, outcome.inputs) if isinstance(outcome, Outcome) else outcome


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    x, y = _dense(x), _dense(y)
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
