"""Compares a compiled function and its gradients with eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.cases.harness import Record, compare, compiled


def check_gradients(
    function: Callable[..., Any], *arguments: Any, model: Callable[..., Any] | None = None, **how: Any
) -> Record:
    """Results and gradients of a function, compiled as one forward and one backward program, are those of eager.

    Args:
        function: what is compiled, whole; every result that requires a gradient is weighted and summed.
        arguments: floating-point tensors among them are copied, and their gradients compared.
        model: runs in eager in place of ``function``.
        how: ``dynamic``, and options of the backend besides ``verify`` and ``poison``.
    """
    given, own = _leaves(arguments), _leaves(arguments)
    record = Record()
    wanted = (model or function)(*given)
    result = compiled(function, record, **how)(*own)
    compare(result, wanted)
    backward(wanted)
    backward(result)
    compare([gradient(value) for value in own], [gradient(value) for value in given], "gradients")
    assert set(record.graphs) == {"forward", "backward"}
    return record


def backward(results: Any) -> None:
    """The gradients of a weighted sum of all results, so that no two elements have the same."""
    total = torch.zeros(())
    for leaf in torch.utils._pytree.tree_leaves(results):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            weights = torch.arange(1.0, leaf.numel() + 1).view(leaf.shape) / leaf.numel()
            total = total + (leaf * weights).abs().sum()
    total.backward()


def gradient(value: Any) -> torch.Tensor | None:
    return value.grad if isinstance(value, torch.Tensor) else None


def _leaves(arguments: Sequence[Any]) -> list[Any]:
    return [
        value.detach().clone().requires_grad_(value.is_floating_point()) if isinstance(value, torch.Tensor) else value
        for value in arguments
    ]
