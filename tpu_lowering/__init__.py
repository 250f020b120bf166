"""tpu_lowering: ``torch.compile(model, backend="helion_tpu")``, a model with its kernels as one XLA program."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpu_lowering.aot import aot_compile
    from tpu_lowering.capture.reference import reference
    from tpu_lowering.errors import TpuLoweringError
    from tpu_lowering.kernels.operators import kernel_op
    from tpu_lowering.kernels.registry import register_kernel
    from tpu_lowering.options import Options
    from tpu_lowering.report.explain import explain
    from tpu_lowering.report.report import Report
    from tpu_lowering.runtime.aot.program import TpuProgram, load
    from tpu_lowering.runtime.aot.slices import fake_mesh
    from tpu_lowering.runtime.aot.step import TpuStep
    from tpu_lowering.session import clear

__version__ = "0.1.0"

# Public names and the modules they live in; imported on first use, so that importing the package is cheap
# and changes nothing.
_PUBLIC = {
    "Options": "tpu_lowering.options",
    "TpuProgram": "tpu_lowering.runtime.aot.program",
    "TpuStep": "tpu_lowering.runtime.aot.step",
    "aot_compile": "tpu_lowering.aot",
    "clear": "tpu_lowering.session",
    "load": "tpu_lowering.runtime.aot.program",
    "Report": "tpu_lowering.report.report",
    "TpuLoweringError": "tpu_lowering.errors",
    "explain": "tpu_lowering.report.explain",
    "fake_mesh": "tpu_lowering.runtime.aot.slices",
    "kernel_op": "tpu_lowering.kernels.operators",
    "reference": "tpu_lowering.capture.reference",
    "register_kernel": "tpu_lowering.kernels.registry",
}

__all__ = [
    "Options", "Report", "TpuLoweringError", "TpuProgram", "TpuStep", "__version__", "aot_compile", "clear",
    "explain", "fake_mesh", "kernel_op", "load", "reference", "register_kernel",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "passes":
        return importlib.import_module("tpu_lowering.passes")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tpu_lowering' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
