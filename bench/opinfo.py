"""Entries of torch's own operator database as programs of a size that a chip would be given.

A sample of the database has a few thousand elements at most. Its sizes are therefore multiplied, all by the same power
of two, as long as the operator takes them and its operands and results stay below ``BYTES``: float32 [5, 10, 5] becomes
[160, 320, 160]. What the sample says in numbers (a dimension, a window) stays as it is. An operator that refuses larger
sizes, because a number of the sample is a size, keeps the sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Generator, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.utils._pytree as pytree

from tpu_lowering.compat import FakeTensorMode

BYTES = 64 << 20
"""What operands and results of a sample may come to."""

AS_IS = frozenset((
    "nn.functional.adaptive_avg_pool1d",
    "nn.functional.adaptive_avg_pool3d",
    "nn.functional.pad.circular",
    "nn.functional.unfold",
    "slice_scatter",
    "unbind",
    "unbind_copy",
))  # fmt: skip
"""Entries whose samples stay as they are: what they are taken apart into grows with the sizes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A call of an operator.

    Attributes:
        function: the operator, with all arguments that hold no tensors.
        args: the others: tensors, and lists with tensors in them. Their values mean nothing.
        nbytes: of the tensors, as the database has them.
        scale: what sizes were multiplied by.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    nbytes: int
    scale: int

    def note(self) -> str:
        """Dtypes and shapes of its tensors."""
        return ", ".join(f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in tensors_of(self.args))


@functools.cache
def entries() -> dict[str, Any]:
    """The entries of ``op_db`` by full name."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name: op for op in op_db}


@contextlib.contextmanager
def unseeded() -> Generator[None]:
    """The database's operators without the seed that some set for themselves, which is not traced."""
    from torch.testing._internal import common_methods_invocations

    def call(operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return operator(*args, **kwargs)

    with mock.patch.object(common_methods_invocations, "wrapper_set_seed", call):
        yield


def largest_sample(name: str, dtype: torch.dtype = torch.float32) -> Sample | None:
    """The sample of an entry whose tensors have the most bytes, the first of equal ones, with larger sizes; None if
    there is none that can be called without looking at values."""
    op, best = entries()[name], None
    for function, tree in _calls(op, dtype):
        count = _nbytes(tree)
        if best is None or count > best.nbytes:
            scale = _scale(function, tree, name in AS_IS)
            if scale:
                best = Sample(function, tuple(_scaled(tree, scale, torch.empty)), count, scale)
    return best


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _calls(op: Any, dtype: torch.dtype) -> Iterator[tuple[Callable[..., Any], list[Any]]]:
    """Each sample as a function of the arguments that hold tensors, and these."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    for sample in op.sample_inputs("cpu", dtype) if op.supports_dtype(dtype, "cpu") else ():
        every = [sample.input, *sample.args, *sample.kwargs.values()]
        given = [at for at, value in enumerate(every) if tensors_of(value)]
        if all(x.layout == torch.strided for x in tensors_of(every)) and given:
            call = functools.partial(_call, op.op, every, given, list(sample.kwargs))
            yield call, [every[at] for at in given]


def _call(operator: Callable[..., Any], every: list[Any], given: list[int], names: list[str], *args: Any) -> Any:
    values = list(every)
    for at, value in zip(given, args, strict=True):
        values[at] = value
    count = len(values) - len(names)
    return operator(*values[:count], **dict(zip(names, values[count:], strict=True)))


def _nbytes(tree: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors_of(tree))


def _scaled(tree: Any, scale: int, make: Callable[..., torch.Tensor]) -> Any:
    def larger(x: torch.Tensor) -> torch.Tensor:
        return make([size * scale if size > 1 else size for size in x.shape], dtype=x.dtype)

    return pytree.tree_map_only(torch.Tensor, larger, tree)


def _scale(function: Callable[..., Any], tree: Any, as_is: bool) -> int:
    """The largest power of two that a call takes its sizes times, within ``BYTES``; 0 if it takes none."""
    scales = [1]
    while (
        not as_is
        and _grown(tree, 2 * scales[-1]) <= BYTES
        and any(max(x.shape, default=0) > 1 for x in tensors_of(tree))
    ):
        scales.append(2 * scales[-1])
    return next((scale for scale in reversed(scales) if _takes(function, tree, scale)), 0)


def _grown(tree: Any, scale: int) -> int:
    return sum(x.element_size() * scale ** sum(size > 1 for size in x.shape) * x.numel() for x in tensors_of(tree))


def _takes(function: Callable[..., Any], tree: Any, scale: int) -> bool:
    try:
        with FakeTensorMode(), torch.no_grad(), unseeded():
            args = _scaled(tree, scale, torch.empty)
            results = function(*args)
            return bool(tensors_of(results)) and (scale == 1 or _nbytes([args, results]) <= BYTES)
    except Exception:  # whatever an operator says of its arguments
        return False
