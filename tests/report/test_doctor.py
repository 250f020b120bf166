"""What the doctor says of packages that are missing, or in a release that is not tested: the command that helps."""

from __future__ import annotations

import pytest
from rich.console import Console

from tpu_lowering import releases
from tpu_lowering.report import doctor

TORCH = {"torch": "2.13.0+cpu", "jax": "0.10.2", "jaxlib": "0.10.2"}
XLA = {"torch": "2.9.0+cpu", "jax": "0.7.1", "jaxlib": "0.7.1"}
OWN = "in an environment of its own: "


def findings(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], tested: str) -> dict[str, tuple[str, ...]]:
    """The rows of packages, and of the runtimes of those that are missing."""
    monkeypatch.setattr(releases, "version", installed.get)
    wanted = releases.RELEASES["torch_xla"] if tested == "torch_xla" else TESTED
    monkeypatch.setattr(releases, "TESTED", wanted)
    monkeypatch.setattr(doctor, "_tried", lambda what, code, success: doctor.Finding(what, "ok", success or "TPU"))
    return {finding.what: (finding.state, finding.found, finding.remedy) for finding in doctor.examine()}


TESTED = {**releases.RELEASES["torch"], **releases.RELEASES["torch_tpu"]}


def test_nothing_but_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, TORCH, "torch")
    assert [found[name][0] for name in TORCH] == ["ok"] * 3
    assert found["libtpu"] == ("missing", "not installed; needed for: TPU compiler", "pip install 'tpu_lowering[aot]'")
    assert found["torch_tpu"] == (
        "missing", "not installed; needed for: tensors on device tpu", "pip install 'tpu_lowering[tpu]'",
    )  # fmt: skip
    assert found["torch_xla"] == (
        "missing", "not installed; needed for: tensors on device xla", f"{OWN}pip install 'tpu_lowering[xla]'",
    )  # fmt: skip
    assert found["runtime: torch_tpu"] == (
        "missing", "torch_tpu is not installed", "pip install 'tpu_lowering[tpu]'",
    )  # fmt: skip
    assert found["runtime: torch_xla"] == (
        "missing", "torch_xla is not installed", f"{OWN}pip install 'tpu_lowering[xla]'",
    )  # fmt: skip
    assert found["TPU compiler"] == ("missing", "libtpu is not installed", "pip install 'tpu_lowering[aot]'")


def test_torch_tpu_in_tested_releases_on_a_machine_without_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, {**TORCH, "libtpu": "0.0.52", "torch_tpu": "0.2.0"}, "torch")
    assert found["libtpu"] == ("ok", "0.0.52", "") and found["torch_tpu"] == ("ok", "0.2.0", "")
    assert found["runtime: torch_tpu"] == (
        "missing", "this machine has no TPU that torch_tpu knows",
        "run the doctor on a machine with a TPU; aot_compile needs none",
    )  # fmt: skip


def test_other_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.12.0", "jax": "0.10.2", "jaxlib": "0.10.1", "libtpu": "0.0.50", "torch_tpu": "0.1.1"}
    found = findings(monkeypatch, installed, "torch")
    assert found["torch"] == ("wrong", "2.12.0, tested with 2.13.0", "pip install torch==2.13.0")
    assert found["jaxlib"] == ("wrong", "0.10.1, tested with 0.10.2", "pip install jaxlib==0.10.2")
    assert found["libtpu"] == ("wrong", "0.0.50, tested with 0.0.52", "pip install libtpu==0.0.52")
    assert found["torch_tpu"] == (
        "wrong",
        "expected torch 2.13.0, torch_tpu 0.2.0, libtpu 0.0.52, jaxlib 0.10.2 for tensors on device tpu, "
        "got torch 2.12.0, torch_tpu 0.1.1, libtpu 0.0.50, jaxlib 0.10.1",
        f"{OWN}pip install 'tpu_lowering[tpu]'",
    )  # fmt: skip


def test_torch_xla_beside_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, {**TORCH, "torch_xla": "2.9.0"}, "torch")
    assert found["torch_xla"] == (
        "wrong",
        "expected torch 2.9.0, jax 0.7.1, jaxlib 0.7.1 for tensors on device xla, "
        "got torch 2.13.0+cpu, jax 0.10.2, jaxlib 0.10.2",
        f"{OWN}pip install 'tpu_lowering[xla]'",
    )


def test_torch_xla_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, {**XLA, "torch_xla": "2.9.0"}, "torch_xla")
    assert [found[name][0] for name in ("torch", "jax", "jaxlib", "torch_xla")] == ["ok"] * 4
    assert found["torch_tpu"][2] == f"{OWN}pip install 'tpu_lowering[tpu]'"
    found = findings(monkeypatch, {**XLA, "torch_xla": "2.8.0"}, "torch_xla")
    assert found["torch_xla"] == (
        "wrong", "expected torch_xla 2.9.0 for tensors on device xla, got torch_xla 2.8.0",
        "pip install 'tpu_lowering[xla]'",
    )  # fmt: skip


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    assert findings(monkeypatch, TORCH, "torch")["Python"] == (
        "wrong", "3.10.4, tested with 3.11", "python3.11 -m venv .venv && .venv/bin/pip install tpu_lowering",
    )  # fmt: skip


def test_what_is_missing_is_no_failure_and_what_is_wrong_is_one() -> None:
    console = Console(quiet=True)
    assert doctor.print_findings([doctor.Finding("a", "ok", ""), doctor.Finding("b", "missing", "")], console)
    assert not doctor.print_findings([doctor.Finding("a", "ok", ""), doctor.Finding("b", "wrong", "")], console)
