"""What of the process's global state no compilation may change."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import torch
import torch._dynamo
import torch._inductor.config
import torch.utils.deterministic


def settle() -> None:
    """Compiles once with torch's own backend, for the settings that torch makes when it is first used, and imports
    Pallas, which registers settings of its own before JAX 0.10."""
    importlib.import_module("jax.experimental.pallas.tpu")
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))


def state() -> dict[str, Any]:
    """Torch's, JAX's and the process's settings, and the state of torch's generator."""
    return {
        "jax": dict(jax.config.values),
        "environment": dict(os.environ),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "random": torch.random.get_rng_state().tolist(),
        "dynamo": torch._dynamo.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "backends": sorted(torch._dynamo.list_backends(exclude_tags=())),
        "one": str(jax.numpy.ones(1).dtype),
    }


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what differs."""
    return [name for name in before if before[name] != after[name]]
