"""Operators on lists of tensors (``aten._foreach_*``, of optimisers) to one operator for each tensor.

::

    _foreach_add.List([a, b], [x, y], alpha=2)    [add(a, x, alpha=2), add(b, y, alpha=2)]
    _foreach_div.ScalarList([a, b], [2.0, 3.0])   [div(a, 2.0), div(b, 3.0)]
    _foreach_pow.ScalarAndTensor(2, [a, b])       [pow(2, a), pow(2, b)]
    _foreach_addcmul.Scalar([a], [x], [y], 2)     [addcmul(a, x, y, value=2)]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tpu_lowering import compat
from tpu_lowering.ir import arguments

aten = compat.aten

PREFIX = "_foreach_"
# Where the operator for one tensor has another name, or takes its arguments in another way.
ELEMENTS: dict[str, Callable[..., Any]] = {
    "addcdiv": lambda self, tensor1, tensor2, value: aten.addcdiv(self, tensor1, tensor2, value=value),
    "addcmul": lambda self, tensor1, tensor2, value: aten.addcmul(self, tensor1, tensor2, value=value),
    "copy": lambda self, src, non_blocking: aten.copy(self, src, non_blocking),
    "maximum": lambda self, other: aten.maximum(self, other) if _is_tensor(other) else aten.clamp_min(self, other),
    "minimum": lambda self, other: aten.minimum(self, other) if _is_tensor(other) else aten.clamp_max(self, other),
    "norm": lambda self, ord, dtype: aten.linalg_vector_norm(self, ord, dtype=dtype),
    "zero": aten.zeros_like.default,
}
# They read numbers off a tensor, which torch's own tracing refuses.
READING = {("addcdiv", "Tensor"), ("addcmul", "Tensor")}


def foreach_decompositions() -> dict[compat.OpOverload, Callable[..., Any]]:
    """A decomposition of each functional list operator that has a form for one tensor."""
    table: dict[compat.OpOverload, Callable[..., Any]] = {}
    for name in {full.removeprefix(PREFIX).rstrip("_") for full in dir(torch) if full.startswith(PREFIX)}:
        packet = getattr(aten, PREFIX + name)
        if packet and (name in ELEMENTS or getattr(aten, name)):
            overloads = [
                getattr(packet, short)
                for short in packet.overloads()
                if not short.endswith("out") and (name, short) not in READING
            ]
            table.update((overload, _one_by_one(overload, name)) for overload in overloads)
    return table


def _one_by_one(overload: compat.OpOverload, name: str) -> Callable[..., Any]:
    schema = compat.schema(overload)
    listed = [argument.name for argument in schema.arguments if "List" in str(argument.type)]
    keywords = [argument.name for argument in schema.arguments if argument.kwarg_only and name not in ELEMENTS]
    element = ELEMENTS.get(name) or getattr(aten, name)

    def decomposed(*args: Any, **kwargs: Any) -> list[Any]:
        bound = arguments.bind(schema, args, kwargs)
        results: list[Any] = []
        for index in range(len(bound[listed[0]])):
            one = {key: value[index] if key in listed else value for key, value in bound.items()}
            given = {key: one.pop(key) for key in keywords}
            results.append(element(*one.values(), **given))
        return results

    return decomposed


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
