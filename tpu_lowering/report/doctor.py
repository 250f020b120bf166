"""``python -m tpu_lowering doctor``: what is installed, what works, and the command that fixes the rest."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from tpu_lowering import errors, releases


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        what: the thing looked at.
        state: "ok", "missing" (optional), or "wrong".
        found: what was found.
        remedy: the command that helps, or "".
    """

    what: str
    state: str
    found: str
    remedy: str = ""


OPTIONAL = {
    "helion": ("Helion kernels", "pip install 'tpu_lowering[helion]'"),
    "transformers": ("the demo model", "pip install 'tpu_lowering[demo]'"),
    "libtpu": ("TPU compiler", "pip install 'tpu_lowering[aot]'"),
}
DEVICES_OF = {"torch_tpu": "tpu", "torch_xla": "xla"}
"""The packages that have a device for tensors, and torch's name of it."""


def examine() -> list[Finding]:
    """Everything the doctor looks at."""
    found = [_python()]
    found += [_required(package) for package in ("torch", "jax", "jaxlib")]
    found += [_optional(package) for package in OPTIONAL]
    found += [_with_device(package) for package in DEVICES_OF]
    found += [_entry_point(), _cpu_runtime(), _jax_devices(), _tpu_runtime(), _xla_runtime()]
    return [*found, _tpu_compiler()]


def _python() -> Finding:
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("Python", "ok", platform.python_version())
    remedy = "python3.11 -m venv .venv && .venv/bin/pip install tpu_lowering"
    return Finding("Python", "wrong", f"{platform.python_version()}, tested with 3.11", remedy)


def _required(package: str) -> Finding:
    version, tested = releases.version(package), releases.TESTED.get(package)
    if version is None:
        return Finding(package, "wrong", "not installed", f"pip install {package}=={tested}")
    if tested and version.partition("+")[0] != tested:
        return Finding(package, "wrong", f"{version}, tested with {tested}", f"pip install {package}=={tested}")
    return Finding(package, "ok", version)


def _optional(package: str) -> Finding:
    purpose, remedy = OPTIONAL[package]
    version, tested = releases.version(package), releases.TESTED.get(package)
    if version is None:
        return Finding(package, "missing", f"not installed; needed for: {purpose}", remedy)
    if tested and version != tested:
        return Finding(package, "wrong", f"{version}, tested with {tested}", f"pip install {package}=={tested}")
    return Finding(package, "ok", version)


def _with_device(package: str) -> Finding:
    """A package with a device for tensors: it and what is beside it must be the tested releases."""
    version, device = releases.version(package), DEVICES_OF[package]
    if version is None:
        return Finding(package, "missing", f"not installed; needed for: tensors on device {device}", _install(package))
    try:
        releases.check(package, device)
    except errors.TpuLoweringError as error:
        return Finding(package, "wrong", error.refusal.reason, _install(package))
    return Finding(package, "ok", version)


def _install(package: str) -> str:
    """The command that installs a package with a device, and where to run it."""
    tested = releases.RELEASES[package]["torch"]
    here = releases.is_tested("torch", tested) or releases.version("torch") is None
    return releases.INSTALL[package] if here else f"in an environment of its own: {releases.INSTALL[package]}"


def _entry_point() -> Finding:
    names = {entry.name for entry in importlib.metadata.entry_points(group="torch_dynamo_backends")}
    if "helion_tpu" in names:
        return Finding('backend "helion_tpu"', "ok", "registered as an entry point")
    return Finding('backend "helion_tpu"', "wrong", "no entry point", "install the package: pip install tpu_lowering")


RUN = (
    "import torch; f = torch.compile(lambda x: x * 2 + 1, backend='helion_tpu'); "
    "assert torch.equal(f(torch.ones(4)), torch.full((4,), 3.0))"
)
CHIP = "from tpu_lowering import compat; print(compat.tpu_name())"
DEVICES = "from tpu_lowering.runtime.device import device_names; print(', '.join(device_names()))"
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
        return Finding("TPU compiler", "missing", "libtpu is not installed", OPTIONAL["libtpu"][1])
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
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "wrong": "[red]wrong[/]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.what, finding.found, finding.remedy.replace("[", "\\["))
    (console or Console()).print(table)
    return all(finding.state != "wrong" for finding in findings)
