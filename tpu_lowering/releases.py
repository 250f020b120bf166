"""The releases of other packages that this one is tested with, and those that are installed."""

from __future__ import annotations

from importlib import metadata

RELEASES: dict[str, dict[str, str]] = {
    "torch": {"torch": "2.13.0", "jax": "0.10.2", "jaxlib": "0.10.2", "helion": "1.5.1"},
    "torch_xla": {"torch": "2.9.0", "torch_xla": "2.9.0", "jax": "0.7.1", "jaxlib": "0.7.1"},
}
"""The releases that are tested together: with torch alone, and with torch_xla. Helion needs the first."""

XLA_INSTALL = "pip install 'tpu_lowering[xla]'"


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_tested(package: str, release: str) -> bool:
    """Whether a package is installed in a release, of whatever build."""
    return (version(package) or "").partition("+")[0] == release


TESTED = RELEASES["torch_xla" if is_tested("torch", RELEASES["torch_xla"]["torch"]) else "torch"]
"""The releases tested with the torch that is installed."""
