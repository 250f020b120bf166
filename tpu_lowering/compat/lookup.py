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
        absent = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        needed = "" if module.startswith(absent.partition(".")[0]) else absent
        raise missing(package, f"{module}.{name}", why, f"{type(error).__name__}: {error}", needed) from error


def missing(package: str, name: str, why: str, got: str = "none", needed: str = "") -> errors.TpuLoweringError:
    """The refusal of a package that lacks a private name; or a module ``needed`` that it imports."""
    found, tested = version(package), TESTED.get(package, ())
    fix = f"pip install {package}=={tested[0]}" if tested else f"install a version of {package} that has it"
    return errors.refuse(
        "TL105",
        f"{package} {found or '(not installed)'}",
        f"expected {name} ({why}), got {got}",
        f"install the package of the module {needed}, which {package} imports" if needed else fix,
    )
