"""The command line: what it loads, what it prints, its exit codes; and the test of a device."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

import tpu_lowering
from tests.processes import forked
from tpu_lowering import errors
from tpu_lowering.__main__ import FIRST_LINES, main
from tpu_lowering.report import commands, files
from tpu_lowering.report.checks import doctor, selftest

MODEL = """
from __future__ import annotations
import dataclasses, torch
from neighbour import double

@dataclasses.dataclass
class Sizes:
    width: int = 4

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(Sizes().width, 2)
    def forward(self, x, scale=1.0):
        return self.linear(double(x)) * scale

def function(x, scale=1.0):
    return double(x) * scale

class Holder:
    function = staticmethod(function)

example_inputs = {"x": torch.ones(3, 4), "scale": 3.0}
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / "neighbour.py").write_text("def double(x):\n    return x * 2\n")
    (tmp_path / "my model.py").write_text(MODEL)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["function", "Model", "Holder.function"])
def test_ordinary_files_load(folder: pathlib.Path, name: str) -> None:
    """Annotations as text, a neighbour, keyword arguments, a class, a name with dots, a file whose name is no name."""
    given = files.given(f"{folder / 'my model.py'}:{name}")
    assert given.args == () and set(given.kwargs) == {"x", "scale"}
    assert given.function(**given.kwargs).shape == ((3, 2) if name == "Model" else (3, 4))


@pytest.mark.parametrize(
    ("inputs", "args"),
    [("lambda: (1, 2)", (1, 2)), ("[1, 2]", (1, 2)), ("3", (3,)), ("lambda: {'a': 1}", ())],
)
def test_inputs_are_given_in_any_form(tmp_path: pathlib.Path, inputs: str, args: tuple[int, ...]) -> None:
    path = tmp_path / "one.py"
    path.write_text(f"example_inputs = {inputs}\ndef f(*args, **kwargs): pass\n")
    given = files.given(f"{path}:f")
    assert given.args == args and dict(given.kwargs) == ({} if args else {"a": 1})


def test_explain_takes_options_and_keyword_arguments(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{folder / 'my model.py'}:Model"
    assert main(["explain", target, "--no-grad", "--json", "--options", "fuse=never", "verify=True"]) == 0
    (program,) = json.loads(capsys.readouterr().out)["programs"]
    assert program.startswith("inference_")
    assert main(["explain", target, "--options", "fuse=sometimes"]) == 1
    assert capsys.readouterr().err.startswith("[TL102] option has the wrong type or value: ")


def test_a_trace_is_written_for_a_target(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libtpu")
    path, out = tmp_path / "one.py", tmp_path / "trace.json"
    path.write_text(
        "import torch\ndef f(x):\n    return torch.softmax(x, -1)\n"
        "def breaks(x):\n    print('half way')\n    return x + 1\nexample_inputs = (torch.ones(64, 256),)\n"
    )
    assert main(["explain", f"{path}:f", "--target", "v5e", "--trace", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chip"]["target"] == "v5e"
    names = [event["name"] for event in json.loads(out.read_text())["traceEvents"] if event["ph"] == "X"]
    assert names and all("one.py:3" in name for name in names)
    out.unlink()
    assert main(["explain", f"{path}:breaks", "--target", "v5e", "--trace", str(out)]) == 1
    assert "\n[TL517] " in "\n" + capsys.readouterr().err and not out.exists()
    assert main(["explain", f"{path}:f", "--trace", str(out)]) == 1
    assert "expected a target whose schedule it shows, got none" in capsys.readouterr().err


def test_a_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "tl205"]) == 0
    assert capsys.readouterr().out == errors.page("TL205")
    assert main(["explain", "TL999"]) == 1
    assert "expected a code such as TL205, got 'TL999'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--version"], ["explain", "--help"], ["explain", "f:g", "--options", "fuse"], []]
)
def test_the_parser_ends_with_its_own_codes(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    is_wrong = arguments in ([], ["explain", "f:g", "--options", "fuse"])
    assert caught.value.code == (2 if is_wrong else 0)
    if arguments == ["--version"]:
        assert capsys.readouterr().out == f"tpu_lowering {tpu_lowering.__version__}\n"


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_refusal_of_dynamo_s_is_printed_as_a_refusal(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "refused.py"
    path.write_text(
        "import torch\n"
        "@torch.library.custom_op('command_line::unknown', mutates_args=())\n"
        "def unknown(x: torch.Tensor) -> torch.Tensor: return x + 1\n"
        "unknown.register_fake(torch.empty_like)\n"
        "def f(x): return torch.ops.command_line.unknown(x)\n"
        "example_inputs = (torch.ones(3),)\n"
    )
    assert main(["explain", f"{path}:f"]) == 1
    found = capsys.readouterr().err
    assert found.startswith("[TL201] operator has no JAX implementation: ") and "Traceback" not in found


def test_a_second_device_passes(tmp_path: pathlib.Path) -> None:
    """In a process with two CPU devices; the compiler's bounds are those of a chip."""
    flags = "--xla_force_host_platform_device_count=2"
    out = tmp_path / "selftest.txt"
    command = ("-m", "tpu_lowering", "selftest", "--device", "cpu:1", "--out", str(out))
    printed = forked.run(*command, seconds=600, XLA_FLAGS=flags)
    assert printed == out.read_text()
    lines = printed.splitlines()
    assert lines[0] == "tpu_lowering selftest on cpu:1"
    assert [line for line in lines if line.startswith("pass  ")] == [f"pass  {name}" for name in selftest.TRIALS]


def test_what_fails_is_said_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> selftest.Trial:
        raise ValueError("no such thing")

    def wrong() -> selftest.Trial:
        return selftest.Trial(lambda x: x + 1, (torch.ones(4),), eagerly=lambda x: x)

    monkeypatch.setattr(selftest, "TRIALS", {"broken": broken, "wrong": wrong})
    outcomes = selftest.run("", "")
    assert [one.passed for one in outcomes] == [False, False]
    text = selftest.text(outcomes, "")
    assert "FAIL  broken" in text and "ValueError: no such thing" in text and "FAIL  wrong" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_says_what_a_command_is_at_before_anything_is_imported(terminal: bool) -> None:
    """In a process of its own, with a terminal or a pipe for its errors."""
    ours, its = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "tpu_lowering", "pipeline"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its, text=True)
    os.close(its)
    said = bytearray()
    with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
        while got := os.read(ours, 1 << 16):
            said += got
    os.close(ours)
    assert child.stdout is not None and "return_fresh_buffers" in child.stdout.read()
    assert child.wait() == 0
    assert (b"imports torch and JAX" in said) is terminal


def test_the_doctor_speaks_before_anything_is_imported() -> None:
    """In a process of its own, into a pipe, as in a log of CI's."""
    command = [sys.executable, "-X", "importtime", "-m", "tpu_lowering", "doctor"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    try:
        assert child.stdout.readline() == FIRST_LINES["doctor"] + "\n"
    finally:
        child.kill()
        imported = child.communicate()[1]
    assert " tpu_lowering.ir.chips" in imported and not re.search(r"\| +(torch|jax)$", imported, re.MULTILINE)


def test_the_doctor_says_what_it_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_tried", lambda what, code, success: doctor.Finding(what, "ok", success))
    said: list[str] = []
    assert len(doctor.examine(said.append)) > len(said)
    assert said[0] == "tries JAX on the CPU" and said[-1] == "tries the TPU compiler"


def test_a_graph_break_is_refused_without_a_report(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libtpu")
    path = tmp_path / "broken.py"
    path.write_text(
        "import torch\ndef f(x):\n    print('half way')\n    return x + 1\nexample_inputs = (torch.ones(8, 128),)\n"
    )
    assert main(["tune", f"{path}:f", "--target", "tpu7x"]) == 1
    found = capsys.readouterr().err
    assert found.startswith("[TL117] function that is no single graph: ") and "Traceback" not in found
    assert "broken.py:3 in f: print('half way')" in found
