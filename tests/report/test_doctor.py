"""What the doctor says of packages that are missing, or in a release that is not tested: the command that helps."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from tests.processes import forked
from tpu_lowering import releases
from tpu_lowering.__main__ import main
from tpu_lowering.report.checks import doctor

TORCH = {"torch": "2.13.0+cpu", "jax": "0.10.2", "jaxlib": "0.10.2"}
XLA = {"torch": "2.9.0+cpu", "jax": "0.7.1", "jaxlib": "0.7.1"}
OWN = "in an environment of its own: "
TPU = "pip install torch_tpu==0.2.0 libtpu==0.0.52"
ON_XLA = "pip install torch==2.9.0 'torch_xla[pallas]==2.9.0' jax==0.7.1 jaxlib==0.7.1"


def findings(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], tested: str) -> dict[str, tuple[str, ...]]:
    """The rows of packages, and of the runtimes of those that are missing."""
    monkeypatch.setattr(releases, "version", installed.get)
    wanted = releases.RELEASES["torch_xla"] if tested == "torch_xla" else TESTED
    monkeypatch.setattr(releases, "TESTED", wanted)
    monkeypatch.setattr(doctor, "_tried", lambda what, code, success: doctor.Finding(what, "ok", success or "TPU"))
    return {finding.what: (finding.state, finding.found, finding.remedy) for finding in doctor.examine()}


TESTED = {**releases.RELEASES["torch_tpu"], **releases.RELEASES["torch"]}


def test_nothing_but_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, TORCH, "torch")
    assert [found[name][0] for name in TORCH] == ["ok"] * 3
    assert found["helion"] == ("missing", "not installed; needed for: Helion kernels", "pip install helion==1.5.1")
    assert found["libtpu"] == ("missing", "not installed; needed for: TPU compiler", "pip install libtpu==0.0.52")
    assert found["torch_tpu"] == ("missing", "not installed; needed for: tensors on device tpu", TPU)
    assert found["torch_xla"] == ("missing", "not installed; needed for: tensors on device xla", f"{OWN}{ON_XLA}")
    assert found["runtime: torch_tpu"] == ("missing", "torch_tpu is not installed", TPU)
    assert found["runtime: torch_xla"] == ("missing", "torch_xla is not installed", f"{OWN}{ON_XLA}")
    assert found["TPU compiler"] == ("missing", "libtpu is not installed", "pip install libtpu==0.0.52")


def test_torch_tpu_in_tested_releases_on_a_machine_without_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, {**TORCH, "libtpu": "0.0.52", "torch_tpu": "0.2.0"}, "torch")
    assert found["libtpu"] == ("ok", "0.0.52", "") and found["torch_tpu"] == ("ok", "0.2.0", "")
    assert found["runtime: torch_tpu"] == (
        "missing", "this machine has no TPU that torch_tpu knows",
        "run the doctor on a machine with a TPU; aot_compile needs none",
    )  # fmt: skip


@pytest.mark.parametrize("torch_release", releases.TORCH)
@pytest.mark.parametrize("jax_release", releases.JAX)
def test_every_tested_release_is_well(monkeypatch: pytest.MonkeyPatch, torch_release: str, jax_release: str) -> None:
    installed = {"torch": f"{torch_release}+cu132", "jax": jax_release, "jaxlib": jax_release}
    found = findings(monkeypatch, installed, "torch")
    assert [found[name][::2] for name in installed] == [("ok", "")] * 3


def test_other_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.12.0", "jax": "0.10.2", "jaxlib": "0.10.1", "libtpu": "0.0.50", "torch_tpu": "0.1.1"}
    found = findings(monkeypatch, installed, "torch")
    assert found["torch"] == (
        "untested", "2.12.0, tested with 2.13.0, 2.14.1, 2.15.0", "pip install torch==2.13.0"
    )  # fmt: skip
    assert found["jaxlib"] == ("untested", "0.10.1, tested with 0.10.2, 0.9.2", "pip install jaxlib==0.10.2")
    assert found["libtpu"] == ("untested", "0.0.50, tested with 0.0.52", "pip install libtpu==0.0.52")
    assert found["torch_tpu"] == (
        "untested",
        "torch 2.12.0, tested with 2.13.0; torch_tpu 0.1.1, tested with 0.2.0; libtpu 0.0.50, tested with 0.0.52; "
        "jaxlib 0.10.1, tested with 0.10.2",
        f"{OWN}{TPU}",
    )


def test_torch_xla_beside_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, {**TORCH, "torch_xla": "2.9.0"}, "torch")
    assert found["torch_xla"] == (
        "untested",
        "torch 2.13.0+cpu, tested with 2.9.0; jax 0.10.2, tested with 0.7.1; jaxlib 0.10.2, tested with 0.7.1",
        f"{OWN}{ON_XLA}",
    )
    found = findings(monkeypatch, {"torch": "2.9.0", "torch_xla": "2.9.0"}, "torch_xla")
    assert found["torch_xla"] == ("wrong", "without jax, jaxlib", ON_XLA)


def test_torch_xla_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, {**XLA, "torch_xla": "2.9.0"}, "torch_xla")
    assert [found[name][0] for name in ("torch", "jax", "jaxlib", "torch_xla")] == ["ok"] * 4
    assert found["torch_tpu"][2] == f"{OWN}{TPU}"
    found = findings(monkeypatch, {**XLA, "torch_xla": "2.8.0"}, "torch_xla")
    assert found["torch_xla"] == ("untested", "torch_xla 2.8.0, tested with 2.9.0", ON_XLA)


@pytest.mark.parametrize(
    ("system", "platform", "machine"),
    [("Darwin", "darwin", "arm64"), ("Windows", "win32", "AMD64"), ("Linux", "linux", "aarch64")],
)
def test_other_machines(monkeypatch: pytest.MonkeyPatch, system: str, platform: str, machine: str) -> None:
    """What is released for Linux on x86-64 alone is not advised elsewhere; the rest is."""
    monkeypatch.setattr(releases.sys, "platform", platform)
    monkeypatch.setattr(releases.platform, "system", lambda: system)
    monkeypatch.setattr(releases.platform, "machine", lambda: machine)
    found = findings(monkeypatch, TORCH, "torch")
    for package in releases.LINUX_ON_X86:
        assert found[package][2] == (
            f"use Linux on x86-64: {package} is released for Linux on x86-64 alone, and this is {system} on {machine}"
        )
    assert found["helion"][2] == "pip install helion==1.5.1"


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    assert findings(monkeypatch, TORCH, "torch")["Python"] == (
        "wrong", "3.10.4, tested with 3.11 to 3.13",
        "in the source folder: python3.11 -m venv .venv && .venv/bin/pip install -c constraints.txt -e .",
    )  # fmt: skip


def test_what_is_missing_or_untested_is_no_failure_and_what_is_wrong_is_one() -> None:
    console = Console(quiet=True)
    fine = [doctor.Finding(state, state, "") for state in ("ok", "missing", "untested")]
    assert doctor.print_findings(fine, console)
    assert not doctor.print_findings([*fine, doctor.Finding("b", "wrong", "")], console)


def forked_run(command: list[str], *, timeout: float, **how: Any) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` gives of a Python program, in a process that is forked from one with torch and JAX."""
    assert command[:2] == [sys.executable, "-c"] and how == {"capture_output": True, "text": True}
    child = forked.server().start(*command[1:])
    output, errors = child.communicate(timeout)
    return subprocess.CompletedProcess(command, child.returncode or 0, output, errors)


def test_doctor_finds_the_cpu_runtime(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "subprocess", types.SimpleNamespace(run=forked_run))
    assert main(["doctor"]) == 0
    cells = "".join(c for c in capsys.readouterr().out if c.isalnum() or c in "+*")
    assert "compiledandranx*2+1" in cells
    assert "registeredasanentrypoint" in cells
    assert "compiledx*2+1fortpu7x" in cells
