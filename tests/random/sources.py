"""Compiling a function that draws random numbers, and calling it from a given state of torch's generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree


def compiled(function: Callable[..., Any], random: str = "jax", **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    dynamic = options.pop("dynamic", False)
    return torch.compile(
        function, backend="helion_tpu", fullgraph=True, dynamic=dynamic, options={"random": random, **options}
    )


def seeded(seed: int, function: Callable[..., Any], *args: Any) -> tuple[list[Any], torch.Tensor]:
    """The results of a call, and the generator's state after it."""
    torch.manual_seed(seed)
    return pytree.tree_leaves(function(*args)), torch.get_rng_state()
