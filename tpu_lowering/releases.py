"""The releases of other packages that this one is tested with, those that are installed, and what installs them."""

from __future__ import annotations

import functools
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata

from tpu_lowering import errors

Tested = Mapping[str, tuple[str, ...]]

JAX = ("0.10.2", "0.9.2")
TORCH = ("2.13.0", "2.14.1", "2.15.0")

RELEASES: dict[str, Tested] = {
    "torch": {"torch": TORCH, "jax": JAX, "jaxlib": JAX, "helion": ("1.5.1",), "libtpu": ("0.0.52",)},
    "torch_tpu": {
        "torch": ("2.13.0",), "torch_tpu": ("0.2.0",), "libtpu": ("0.0.52",), "jax": ("0.10.2",), "jaxlib": ("0.10.2",),
    },
    "torch_xla": {"torch": ("2.9.0",), "torch_xla": ("2.9.0",), "jax": ("0.7.1",), "jaxlib": ("0.7.1",)},
}  # fmt: skip
"""The releases that are tested together: with torch alone, and with each package that has a device for tensors. The
first of a package is the default, with which the whole suite runs."""

ALWAYS = ("torch", "jax", "jaxlib", "helion")
"""What a program is made by, wherever it runs."""

PYTHONS = ((3, 11), (3, 14))
"""The oldest Python that is tested, and the first that is not."""

INSTALL: dict[str, str] = {
    "helion": "pip install helion==1.5.1",
    "libtpu": "pip install libtpu==0.0.52",
    "torch_tpu": "pip install torch_tpu==0.2.0 libtpu==0.0.52",
    "torch_xla": "pip install torch==2.9.0 'torch_xla[pallas]==2.9.0' jax==0.7.1 jaxlib==0.7.1",
    "transformers": "pip install 'transformers>=5,<6'",
}
"""What installs the packages that are not always needed. Those of torch_xla need an environment of their own."""

LINUX_ON_X86 = ("libtpu", "torch_tpu", "torch_xla")
"""The packages that are released for Linux on x86-64 alone."""


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_tested(package: str, tested: Sequence[str]) -> bool:
    """Whether a package is installed in one of some releases, of whatever build."""
    return (version(package) or "").partition("+")[0] in tested


def untested(packages: Tested) -> dict[str, str]:
    """The packages that are installed in another release than was tested, each with what the doctor says of it."""
    return {
        package: f"{version(package)}, tested with {', '.join(tested)}"
        for package, tested in packages.items()
        if version(package) is not None and not is_tested(package, tested)
    }


def unavailable(package: str) -> str:
    """Why a package cannot be installed on this machine; "" where it can."""
    here = (sys.platform, platform.machine().lower())
    if package not in LINUX_ON_X86 or (here[0] == "linux" and here[1] in ("x86_64", "amd64")):
        return ""
    return f"{package} is released for Linux on x86-64 alone, and this is {platform.system()} on {platform.machine()}"


def installing(package: str) -> str:
    """What installs a package that is not always needed, or where it can be."""
    return INSTALL[package] if not unavailable(package) else f"use Linux on x86-64: {unavailable(package)}"


def check(runtime: str, device: str) -> None:
    """Checks that a package with a device for tensors, and those beside it, are installed; warns of untested releases.

    Args:
        runtime: a key of ``RELEASES``.
        device: torch's name of its device.

    Raises:
        TpuLoweringError: TL105, with the command that installs them.
    """
    tested = RELEASES[runtime]
    absent = [package for package in tested if version(package) is None]
    if absent:
        expected = ", ".join(f"{package} {tested[package][0]}" for package in absent)
        raise errors.refuse(
            "TL105", ", ".join(f"{package} (not installed)" for package in absent),
            f"expected {expected} for tensors on device {device}, got none", installing(runtime),
        )  # fmt: skip
    warn_of_untested()
    warn_of_untested(runtime)


@functools.cache
def warn_of_untested(runtime: str = "") -> None:
    """Warns, once in a process, of what is installed in a release that was not tested.

    Args:
        runtime: a key of ``RELEASES``, of which what always is needed was spoken of before; "" for that.
    """
    always = {package: TESTED[package] for package in ALWAYS if package in TESTED}
    packages = RELEASES[runtime] if runtime else always
    found = {package: words for package, words in untested(packages).items() if not runtime or package not in always}
    if found:
        refusal = errors.Refusal(
            "TL105", ", ".join(found), "; ".join(f"{package} {words}" for package, words in found.items()),
            f"pip install {' '.join(f'{package}=={packages[package][0]}' for package in found)}",
        )  # fmt: skip
        warnings.warn(str(refusal), RuntimeWarning, stacklevel=2)


TESTED: Tested = (
    RELEASES["torch_xla"]
    if is_tested("torch", RELEASES["torch_xla"]["torch"])
    else {**RELEASES["torch_tpu"], **RELEASES["torch"]}
)
"""The releases tested with the torch that is installed."""
