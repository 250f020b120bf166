"""``python -m tpu_lowering doctor``: what is installed, what works, and the command that fixes the rest."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from tpu_lowering import releases


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        what: the thing looked at.
        state: "ok", "missing" (optional), "untested" (another release than was tested), or "wrong".
        found: what was found.
        remedy: the command that helps, or "".
    """

    what: str
    state: str
    found: str
    remedy: str = ""


OPTIONAL = {"helion": "Helion kernels", "transformers": "the demo model", "libtpu": "TPU compiler"}
"""The packages that are not always needed, and what for."""
SOURCE = "pip install -c constraints.txt -e ."
"""What installs this package, which no index has."""
DEVICES_OF = {"torch_tpu": "tpu", "torch_xla": "xla"}
"""The packages that have a device for tensors, and torch's name of it."""


def examine(says: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Everything the doctor looks at; ``says`` is told what is begun."""
    found = [_python()]
    found += [_required(package) for package in ("torch", "jax", "jaxlib")]
    found += [_optional(package) for package in OPTIONAL]
    found += [_with_device(package) for package in DEVICES_OF]
    found.append(_entry_point())
    tried = {
        "JAX on the CPU": _cpu_runtime,
        "programs of several processes": _many_processes,
        "JAX's devices": _jax_devices,
        "torch_tpu": _tpu_runtime,
        "torch_xla": _xla_runtime,
        "the TPU compiler": _tpu_compiler,
    }
    for name, look in tried.items():
        says(f"tries {name}")
        found.append(look())
    return found


def _python() -> Finding:
    oldest, beyond = releases.PYTHONS
    if oldest <= sys.version_info[:2] < beyond:
        return Finding("Python", "ok", platform.python_version())
    found = f"{platform.python_version()}, tested with 3.{oldest[1]} to 3.{beyond[1] - 1}"
    return Finding("Python", "wrong", found, f"in the source folder: python3.11 -m venv .venv && .venv/bin/{SOURCE}")


def _required(package: str) -> Finding:
    if releases.version(package) is None:
        return Finding(package, "wrong", "not installed", f"pip install {package}=={releases.TESTED[package][0]}")
    return _installed(package, releases.TESTED)


def _installed(package: str, tested: releases.Tested) -> Finding:
    """A package that is there, in a release that was tested or in another."""
    if words := releases.untested({package: tested[package]} if package in tested else {}).get(package):
        return Finding(package, "untested", words, f"pip install {package}=={tested[package][0]}")
    return Finding(package, "ok", str(releases.version(package)))


def _optional(package: str) -> Finding:
    if releases.version(package) is not None:
        return _installed(package, releases.TESTED)
    return Finding(package, "missing", f"not installed; needed for: {OPTIONAL[package]}", releases.installing(package))


def _with_device(package: str) -> Finding:
    """A package with a device for tensors: it and what is beside it must be the tested releases."""
    device, tested = DEVICES_OF[package], releases.RELEASES[package]
    if releases.version(package) is None:
        return Finding(package, "missing", f"not installed; needed for: tensors on device {device}", _install(package))
    if absent := [beside for beside in tested if releases.version(beside) is None]:
        return Finding(package, "wrong", f"without {', '.join(absent)}", _install(package))
    if found := releases.untested(tested):
        words = "; ".join(f"{beside} {said}" for beside, said in found.items())
        return Finding(package, "untested", words, _install(package))
    return Finding(package, "ok", str(releases.version(package)))


def _install(package: str) -> str:
    """The command that installs a package with a device, and where to run it."""
    tested = releases.RELEASES[package]["torch"]
    here = releases.is_tested("torch", tested) or releases.version("torch") is None or releases.unavailable(package)
    return releases.installing(package) if here else f"in an environment of its own: {releases.installing(package)}"


def _entry_point() -> Finding:
    names = {entry.name for entry in importlib.metadata.entry_points(group="torch_dynamo_backends")}
    if "helion_tpu" in names:
        return Finding('backend "helion_tpu"', "ok", "registered as an entry point")
    return Finding('backend "helion_tpu"', "wrong", "no entry point", f"in the source folder: {SOURCE}")


RUN = (
    "import torch; f = torch.compile(lambda x: x * 2 + 1, backend='helion_tpu'); "
    "assert torch.equal(f(torch.ones(4)), torch.full((4,), 3.0))"
)
CHIP = "from tpu_lowering import compat; print(compat.tpu_name())"
RANKS = "from tpu_lowering.report.checks import two_ranks; two_ranks.check()"
DEVICES = "from tpu_lowering.runtime.places import device_names; print(', '.join(device_names()))"
RUN_TPU = (
    "import torch; f = torch.compile(lambda x: x * 2 + 1, backend='helion_tpu'); "
    "assert torch.equal(f(torch.ones(4, device='tpu')).cpu(), torch.full((4,), 3.0))"
)
RUN_XLA = (
    "import torch, torch_xla; f = torch.compile(lambda x: x * 2 + 1, backend='helion_tpu'); "
    "assert torch.equal(f(torch.ones(4, device='xla')).cpu(), torch.full((4,), 3.0))"
)
COMPILE = "import torch, tpu_lowering; tpu_lowering.aot_compile(lambda x: x * 2 + 1, (torch.ones(8, 128),))"


def _cpu_runtime() -> Finding:
    return _tried("runtime: JAX on CPU", RUN, "compiled and ran x * 2 + 1")


def _many_processes() -> Finding:
    return _tried("programs of several processes", RANKS, "two processes compiled and ran a sum over both")


def _jax_devices() -> Finding:
    return _tried("JAX devices: options={'device': ...}", DEVICES, "")


def _tpu_runtime() -> Finding:
    what = "runtime: torch_tpu"
    if releases.version("torch_tpu") is None:
        return Finding(what, "missing", "torch_tpu is not installed", _install("torch_tpu"))
    chip = _tried(what, CHIP, "")
    if chip.found == "TPU":  # what torch_tpu calls a TPU that is not there
        remedy = "run the doctor on a machine with a TPU; aot_compile needs none"
        return Finding(what, "missing", "this machine has no TPU that torch_tpu knows", remedy)
    return _tried(what, RUN_TPU, f"compiled and ran x * 2 + 1 on a {chip.found}") if chip.state == "ok" else chip


def _xla_runtime() -> Finding:
    what = "runtime: torch_xla"
    if releases.version("torch_xla") is None:
        return Finding(what, "missing", "torch_xla is not installed", _install("torch_xla"))
    return _tried(what, RUN_XLA, "compiled and ran x * 2 + 1 on torch_xla's device")


def _tpu_compiler() -> Finding:
    if releases.version("libtpu") is None:
        return Finding("TPU compiler", "missing", "libtpu is not installed", releases.installing("libtpu"))
    return _tried("TPU compiler", COMPILE, "compiled x * 2 + 1 for tpu7x; no TPU is needed")


def _tried(what: str, code: str, success: str) -> Finding:
    """Runs a line in a process of its own, so that nothing is initialised here; without ``success``, it prints it."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    if run.returncode == 0:
        return Finding(what, "ok", success or (run.stdout.strip().splitlines() or [""])[-1])
    return Finding(what, "wrong", (run.stderr.strip().splitlines() or ["failed"])[-1], "see the message")


def print_findings(findings: list[Finding], console: Console | None = None) -> bool:
    """Prints the table; returns whether nothing is wrong."""
    table = Table(title="tpu_lowering doctor", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "missing": "yellow", "untested": "yellow", "wrong": "red"}
    for finding in findings:
        table.add_row(
            f"[{colours[finding.state]}]{finding.state}[/]",
            finding.what,
            finding.found,
            finding.remedy.replace("[", "\\["),
        )
    (console or Console()).print(table)
    return all(finding.state != "wrong" for finding in findings)
