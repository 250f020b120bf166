"""XLA's executables for the CPU, kept from one process to the next."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import platform
import re
from collections.abc import Sequence
from typing import Any

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import settings
from tpu_lowering.releases import version
from tpu_lowering.runtime.cache.store import Store, digest, package_digest

CALLED = re.compile(r'custom_call_target="([^"]*)"')
OWN_CALLS = {"TopK"}
"""Targets of custom calls that XLA's runtime has itself, in every process."""

PACKAGES = ("helion", "jax", "jaxlib", "ml_dtypes", "numpy", "torch", "tpu_lowering")


def surroundings() -> str:
    """What an executable depends on beside its program: versions, this package, flags, settings and the processor."""
    return json.dumps([_of_process(), *settings.described()])


@functools.cache
def _of_process() -> str:
    client = compat.cpu_device().client
    return json.dumps([versions(), client.platform_version, os.environ.get("XLA_FLAGS", ""), _processor()])


@functools.cache
def versions() -> tuple[str, ...]:
    """The versions of all that has a part in a program, and the contents of this package, a line each."""
    return (*(f"{package} {version(package)}" for package in PACKAGES), f"tpu_lowering's files {package_digest()}")


def _processor() -> str:
    """The processor and its instruction sets: an executable uses those it was compiled for."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def key(kind: str, parts: Sequence[str]) -> str:
    """The key of an executable: of what kind its description is, and the description."""
    return digest([kind, surroundings(), *parts])


def save(store: Store, key: str, compiled: Any) -> bool:
    """Writes a ``jax.stages.Compiled``; returns whether it could be.

    Calls out of XLA's own code, to LAPACK or to Python, are bound when a program is lowered, so a program with one
    has to be lowered in each process.
    """
    called = set(CALLED.findall(compiled.as_text()))
    data = compat.executable_bytes(compiled) if called <= OWN_CALLS else None
    if data is not None:
        store.write(key, data)
    return data is not None


def load(store: Store, key: str, outputs: Sequence[TensorType]) -> compat.DirectCall | None:
    """An executable, to be called; None if there is no sound one.

    Args:
        store: where it is.
        key: see ``key``.
        outputs: the type of each result.
    """
    data = store.read(key)
    return None if data is None else compat.executable_from_bytes(data, outputs)
