"""The releases of other packages that this one is tested with, and those that are installed."""

from __future__ import annotations

from importlib import metadata

from tpu_lowering import errors

RELEASES: dict[str, dict[str, str]] = {
    "torch": {"torch": "2.13.0", "jax": "0.10.2", "jaxlib": "0.10.2", "helion": "1.5.1", "libtpu": "0.0.52"},
    "torch_tpu": {
        "torch": "2.13.0", "torch_tpu": "0.2.0", "libtpu": "0.0.52", "jax": "0.10.2", "jaxlib": "0.10.2",
    },
    "torch_xla": {"torch": "2.9.0", "torch_xla": "2.9.0", "jax": "0.7.1", "jaxlib": "0.7.1"},
}  # fmt: skip
"""The releases that are tested together: with torch alone, and with each package that has a device for tensors."""

INSTALL: dict[str, str] = {
    "torch_tpu": "pip install 'tpu_lowering[tpu]'",
    "torch_xla": "pip install 'tpu_lowering[xla]'",
}
"""What installs the packages that have a device for tensors. Those of torch_xla need an environment of their own."""


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_tested(package: str, release: str) -> bool:
    """Whether a package is installed in a release, of whatever build."""
    return (version(package) or "").partition("+")[0] == release


def check(runtime: str, device: str) -> None:
    """Checks that a package with a device for tensors, and those beside it, are the tested releases.

    Args:
        runtime: a key of ``INSTALL``.
        device: torch's name of its device.

    Raises:
        TpuLoweringError: TL105, with the command that installs them.
    """
    tested = RELEASES[runtime]
    wrong = {package: version(package) for package in tested if not is_tested(package, tested[package])}
    if not wrong:
        return
    expected = ", ".join(f"{package} {tested[package]}" for package in wrong)
    found = ", ".join(f"{package} {installed or '(not installed)'}" for package, installed in wrong.items())
    raise errors.refuse(
        "TL105", found, f"expected {expected} for tensors on device {device}, got {found}", INSTALL[runtime]
    )  # fmt: skip


TESTED = (
    RELEASES["torch_xla"]
    if is_tested("torch", RELEASES["torch_xla"]["torch"])
    else {**RELEASES["torch"], **RELEASES["torch_tpu"]}
)
"""The releases tested with the torch that is installed."""
