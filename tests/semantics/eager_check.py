"""Holds a compiled function against eager: values, dtypes, strides, what shares memory, mutated arguments, errors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

SIZES = (4, 6)
"""A compiled function is called with arguments of the first size and, if it is dynamic, of the second."""

Make = Callable[[int], tuple[Any, ...]]
"""Arguments for a size; the same ones, in memory of their own, at each call."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A function and its arguments.

    Attributes:
        function: takes tensors and Python values; a result, if it has one, is any tree of them.
        make: its arguments.
        options: of the backend.
    """

    function: Callable[..., Any]
    make: Make
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def both_ways(cases: Mapping[str, Case]) -> pytest.MarkDecorator:
    """A test for each case, compiled for one size, and for any size: the latter is a sweep."""
    one = [pytest.param(case, False, id=f"{name}-static") for name, case in cases.items()]
    any_ = [pytest.param(case, True, id=f"{name}-dynamic", marks=pytest.mark.sweep) for name, case in cases.items()]
    return pytest.mark.parametrize(("case", "dynamic"), [*one, *any_])


def check(case: Case, dynamic: bool) -> None:
    """Asserts that the compiled function does what eager does, at each size."""
    torch._dynamo.reset()
    function = torch.compile(
        case.function, backend="helion_tpu", fullgraph=True, dynamic=dynamic, options=dict(case.options)
    )
    for size in SIZES if dynamic else SIZES[:1]:
        expected, got = observe(case.function, case.make, size), observe(function, case.make, size)
        assert len(got) == len(expected), f"size {size}: expected {expected}, got {got}"
        for name, value in expected.items():
            difference = differs(got[name], value)
            assert not difference, f"size {size}, {name}: {difference}"


def observe(function: Callable[..., Any], make: Make, size: int) -> dict[str, Any]:
    """What a call makes, by name: the kind of an exception, or results, what they share, and arguments afterwards."""
    torch.manual_seed(0)
    arguments = make(size)
    torch.manual_seed(1)
    try:
        result = function(*arguments)
    except Exception as error:
        return {"exception": kind_of(error)}
    leaves, tree = pytree.tree_flatten(result)
    wanted = [leaf.sum() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if wanted:
        torch.autograd.backward(wanted)
    given = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    seen = {"tree": str(tree), "shared memory": shared([*given, *leaves])}
    seen |= {f"result {at}": value for at, value in enumerate(leaves)}
    return seen | {f"argument {at}" + part: value for at, leaf in enumerate(given) for part, value in _state(leaf)}


def _state(argument: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield "", argument.detach()
    yield "'s gradient", argument.grad if argument.is_leaf else None


def kind_of(error: BaseException) -> type[BaseException]:
    """The class of an exception that eager knows; Dynamo and our own errors are kinds of ``RuntimeError``."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


def shared(leaves: list[Any]) -> list[Any]:
    """For each tensor, which earlier one is in the same memory, and how many bytes apart they begin."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    found: list[Any] = []
    for at, tensor in enumerate(tensors):
        place = tensor.untyped_storage().data_ptr()
        same = (other for other in tensors[:at] if place and other.untyped_storage().data_ptr() == place)
        first = next(same, None)
        index = next((i for i, other in enumerate(tensors) if other is first), None)
        found.append(None if first is None else (index, tensor.numel() and tensor.data_ptr() - first.data_ptr()))
    return found


def differs(got: Any, expected: Any) -> str:
    """How a value differs from eager's, or "" if it does not."""
    if not isinstance(expected, torch.Tensor) or not isinstance(got, torch.Tensor):
        same = type(got) is type(expected) and (got == expected or (got != got and expected != expected))
        return "" if same else f"expected {expected!r}, got {got!r}"
    for name in ("dtype", "shape", "requires_grad"):
        if getattr(got, name) != getattr(expected, name):
            return f"expected {name} {getattr(expected, name)}, got {getattr(got, name)}"
    if steps(got) != steps(expected):
        return f"expected strides {expected.stride()}, got {got.stride()}"
    exact = not (expected.is_floating_point() or expected.is_complex())
    tolerance = {} if not exact else {"rtol": 0, "atol": 0}
    try:
        torch.testing.assert_close(got, expected, equal_nan=True, check_stride=False, **tolerance)
    except AssertionError as error:
        return f"expected {expected}, got {got}: {error}"
    signs = got.dtype.is_floating_point and not torch.equal(zero_signs(got), zero_signs(expected))
    return f"expected zeros of the signs in {expected}, got {got}" if signs else ""


def steps(tensor: torch.Tensor) -> list[int]:
    """The strides of dimensions that have more than one element: the others' place no element."""
    if tensor.numel() == 0:
        return []
    return [step for step, size in itertools.zip_longest(tensor.stride(), tensor.shape) if size > 1]


def zero_signs(tensor: torch.Tensor) -> torch.Tensor:
    """Which elements are -0.0."""
    return (tensor == 0) & tensor.signbit()
