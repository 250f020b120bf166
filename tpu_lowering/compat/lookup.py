"""Looking up one private name: a coded error says which package lacks it, in which version."""

from __future__ import annotations

import importlib
from typing import Any

from tpu_lowering import errors
from tpu_lowering.releases import TESTED, version


def private(package: str, module: str, name: str, why: str) -> Any:
    """Looks up one private name.

    Args:
        package: the distribution that owns it.
        module: the module it is defined in.
        name: the attribute.
        why: what it is needed for; shown when it is missing.

    Raises:
        TpuLoweringError: TL105, if the installed version does not have it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise missing(package, f"{module}.{name}", why, f"{type(error).__name__}: {error}") from error


def missing(package: str, name: str, why: str, got: str = "none") -> errors.TpuLoweringError:
    """The refusal of a package that lacks a private name."""
    found, tested = version(package), TESTED.get(package, ())
    return errors.refuse(
        "TL105",
        f"{package} {found or '(not installed)'}",
        f"expected {name} ({why}), got {got}",
        f"pip install {package}=={tested[0]}" if tested else f"install a version of {package} that has it",
    )
