"""The rewrites of a normalised graph, one file each; and ``apply``, a pass for the graphs of other backends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpu_lowering.bridge.functional_kernels import apply

__all__ = ["apply"]


def __getattr__(name: str) -> Any:
    if name != "apply":
        raise AttributeError(f"module 'tpu_lowering.passes' has no attribute {name!r}")
    return importlib.import_module("tpu_lowering.bridge.functional_kernels").apply
