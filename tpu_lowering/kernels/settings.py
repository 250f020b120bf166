"""Settings of the process that change what a function or a graph computes, beside its arguments."""

from __future__ import annotations

import os
from collections.abc import Hashable

import jax
import torch

from tpu_lowering import compat

SET_BY_US = ("jax_enable_x64",)
"""JAX's settings that have one value wherever we trace, whatever the user's is."""


def of_torch() -> tuple[Hashable, ...]:
    """Torch's."""
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        bool(getattr(torch.utils.deterministic, "fill_uninitialized_memory")),  # noqa: B009 (a property of the module)
    )


def of_tracing() -> Hashable:
    """All that tracing depends on, to tell kernels of one process apart."""
    return (compat.trace_context(), of_torch())


def described() -> list[str]:
    """The same as text, for other processes; settings of JAX that change nothing are among it."""
    of_jax = [f"{name}={value}" for name, value in sorted(jax.config.values.items()) if name not in SET_BY_US]
    of_helion = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("HELION_")]
    return [*of_jax, *of_helion, *map(str, of_torch())]
